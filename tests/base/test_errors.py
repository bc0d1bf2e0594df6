"""Errors: one line, a hint, an exit code, and the way through pickle."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import (
    MEANING,
    BadRequest,
    ErrorType,
    HostUnfit,
    Interrupted,
    LockTimeout,
    RayprepError,
    StageError,
    Unsupported,
)

ERRORS = [
    RayprepError("plain"),
    RayprepError("typed", error_type=ErrorType.NODE_LOST),
    BadRequest("tp is 3", hint="choose 1"),
    HostUnfit("no GPU", hint="find one", error_type=ErrorType.UNSUPPORTED),
    LockTimeout("held by pid 7"),
    LockTimeout("held by pid 7", hint="wait"),
    StageError(
        ErrorType.INSUFFICIENT_DISK,
        "1 MiB free",
        hint="clear up",
        payload={"required_bytes": 9, "free_bytes": 1},
        log_tail=("last", "words"),
    ),
    StageError(ErrorType.STAGE_TIMEOUT, "too long"),
    Unsupported("no server starts", hint="leave it out", log_tail=("last",)),
    Interrupted(),
    Interrupted("stopped by SIGTERM"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(error: RayprepError, protocol: int) -> None:
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert (str(back), back.line, back.exit_code) == (str(error), error.line, error.exit_code)
    assert back.args == error.args


def test_an_error_survives_pickling_with_its_notes_and_copying() -> None:
    error = StageError(ErrorType.COMPILE_FAILED, "no", payload={"free_bytes": 1})
    error.add_note("seen on host-1")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen on host-1"]
    assert vars(copy.deepcopy(error)) == vars(error)


def test_exit_codes_are_the_contract() -> None:
    codes: dict[type[RayprepError], int] = {BadRequest: 2, HostUnfit: 3, LockTimeout: 4, Interrupted: 130}
    assert {kind: kind.exit_code for kind in codes} == codes


@given(st.text(st.characters()), st.text(st.characters()))
def test_the_line_is_one_line_that_can_be_printed(message: str, hint: str) -> None:
    for error in (BadRequest(message, hint=hint), StageError(ErrorType.UNSUPPORTED, message)):
        assert len(error.line.splitlines()) <= 1
        error.line.encode()
        assert error.line.isprintable()
        str(error).encode()


def test_no_escape_sequence_reaches_the_terminal() -> None:
    assert BadRequest("no \x1b[31mred", hint="fetch \x1b]0;x\a").line == r"no \x1b[31mred (fetch \x1b]0;x\x07)"


def test_the_line_says_what_and_what_to_do() -> None:
    assert BadRequest("tp is 3", hint="choose 1").line == "tp is 3 (choose 1)"
    assert BadRequest("tp\nis\n 3").line == "tp is 3"
    assert StageError(ErrorType.PORT_ALL_BUSY, "30995 to 30999").line.endswith(
        f"({MEANING[ErrorType.PORT_ALL_BUSY][1]})"
    )


def test_a_lock_timeout_and_an_interrupt_are_typed() -> None:
    assert LockTimeout("x").error_type is ErrorType.LOCK_TIMEOUT
    assert Interrupted().error_type is ErrorType.INTERRUPTED
    assert StageError(ErrorType.CLEANUP_FAILED, "x").error_type is ErrorType.CLEANUP_FAILED


def test_every_error_type_has_a_meaning_and_a_remedy() -> None:
    assert set(MEANING) == set(ErrorType)
    for meaning, remedy in MEANING.values():
        assert meaning.strip()
        assert remedy.strip()
        assert len(f"{meaning} {remedy}".splitlines()) == 1


def test_the_contracts_error_types_are_all_there() -> None:
    seed = "nvrtc_compile_failed oom_during_warmup tuner_execution_error verify_log_missing lock_timeout port_all_busy"
    design = "server_start_failed server_crashed stage_timeout verify_failed node_lost lease_lost toolchain_mismatch"
    more = "permissions_unexpected insufficient_disk cleanup_failed unsupported interrupted"
    assert {*seed.split(), *design.split(), *more.split()} <= {each.value for each in ErrorType}
