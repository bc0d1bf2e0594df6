"""What a stage will do: the rules in their order, and what it is reckoned to cost."""

from itertools import combinations
from typing import Any

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model.completion import Check, CheckState
from rayprep.model.plan import (
    Action,
    Decision,
    NotNeeded,
    Plan,
    StagePlan,
    Unable,
    VerifyDecision,
    Work,
    calibrate,
    decide,
    decide_verify,
    known_unable,
    waves,
    with_consequences,
    with_missed,
)
from rayprep.model.proof import Verification
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName
from tests.model.samples import DIGEST, MOMENT, completion, signature

WORK = Work(units=("bs1", "bs8"), required_bytes=10 << 20, estimate="a guess", seconds=24)
UNABLE = Unable(error_type=ErrorType.UNSUPPORTED, message="not here")
UNFIT = Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message="no compiler")
WITHOUT_COMPILER = Unable(error_type=ErrorType.TOOLCHAIN_MISMATCH, message="missing: nvcc", units=("bs1", "bs8"))
NOT_NEEDED = NotNeeded(reason="not_moe", detail="no experts")
VALID = Check(state=CheckState.VALID)
STALE = Check(state=CheckState.SIGNATURE_MISMATCH, detail="python was 3.11, is 3.12")
NO_PROOF = VerifyDecision(run=False, reason="verified")


def decision(
    op: StageOp = StageOp.ENSURE, selected: bool = True, plan: StagePlan = WORK, check: Check = STALE
) -> Decision:
    return decide(StageName.INDUCTOR, op, selected, plan, check, "key")


@pytest.mark.parametrize(
    ("got", "action", "reason"),
    [
        (decision(StageOp.REBUILD, False, UNABLE), Action.SKIP, "not_selected"),
        (decision(StageOp.SKIP, True, UNABLE), Action.SKIP, "requested"),
        (decision(StageOp.REBUILD, True, NOT_NEEDED), Action.SKIP, "not_moe"),
        (decision(StageOp.REBUILD, True, UNABLE, VALID), Action.FAIL, "unsupported"),
        (decision(StageOp.ENSURE, True, UNABLE, VALID), Action.FAIL, "unsupported"),
        (decision(StageOp.REBUILD, True, WORK, VALID), Action.BUILD, "rebuild_requested"),
        (decision(StageOp.ENSURE, True, WITHOUT_COMPILER, VALID), Action.NOOP, "valid_signature"),
        (decision(StageOp.ENSURE, True, WITHOUT_COMPILER, STALE), Action.FAIL, "toolchain_mismatch"),
        (decision(StageOp.REBUILD, True, WITHOUT_COMPILER, VALID), Action.FAIL, "toolchain_mismatch"),
        (decision(StageOp.ENSURE, True, WORK, VALID), Action.NOOP, "valid_signature"),
        (decision(StageOp.ENSURE, True, WORK, STALE), Action.BUILD, "signature_mismatch"),
    ],
)
def test_the_first_rule_that_fits_decides(got: Decision, action: Action, reason: str) -> None:
    assert (got.action, got.reason) == (action, reason)


@pytest.mark.parametrize("state", CheckState)
def test_every_state_but_the_valid_ones_builds_and_is_the_reason(state: CheckState) -> None:
    got = decision(check=Check(state=state, detail="why"))
    expected = Action.NOOP if state in (CheckState.VALID, CheckState.NOT_NEEDED) else Action.BUILD
    assert got.action is expected
    if got.action is Action.BUILD:
        assert (got.reason, got.detail) == (state.value, "why")


def test_only_a_skip_of_the_host_or_the_model_is_kept() -> None:
    assert decision(plan=NOT_NEEDED).record_skip
    assert not decision(op=StageOp.SKIP, plan=NOT_NEEDED).record_skip
    assert not decision(selected=False, plan=NOT_NEEDED).record_skip


def test_a_failure_carries_its_type_and_words() -> None:
    got = decision(plan=UNABLE)
    assert (got.error_type, got.detail) == (ErrorType.UNSUPPORTED, "not here")


def test_a_plan_needs_work_only_for_a_build_or_a_proof() -> None:
    idle = (decision(check=VALID), decision(plan=NOT_NEEDED), decision(plan=UNABLE))
    assert not Plan(decisions=idle, verify=NO_PROOF).needs_work
    assert Plan(decisions=(*idle, decision()), verify=NO_PROOF).needs_work
    assert Plan(decisions=idle, verify=VerifyDecision(run=True, reason="not_verified_yet")).needs_work


def test_a_decision_for_people_says_what_it_costs() -> None:
    assert str(decision()) == (
        "inductor: build, signature_mismatch (python was 3.11, is 3.12): 2 to build, about 24 s and 10 MiB (a guess)"
    )
    assert str(decision(check=VALID)) == "inductor: noop, valid_signature"


def test_cost_is_reckoned_from_what_earlier_builds_took() -> None:
    small = completion(units=("a", "b"), artifacts={"triton/a": (100, DIGEST)}, duration_s=10.0)
    large = completion(units=("c",), artifacts={"triton/b": (900, DIGEST)}, duration_s=20.0)
    got = calibrate(WORK, [small, large])
    assert got.seconds == pytest.approx(2 * 30.0 / 3), "the mean of a unit"
    assert got.required_bytes == 2 * 900, "the largest unit"
    assert "2 earlier builds" in got.estimate
    assert got.units == WORK.units


def test_earlier_builds_that_measured_nothing_change_nothing() -> None:
    useless = [
        completion(outcome="skipped", units=(), artifacts={}),
        completion(duration_s=0.0),
        completion(artifacts={}),
    ]
    assert calibrate(WORK, useless) == WORK
    assert calibrate(WORK, []) == WORK


def test_a_build_of_tiny_files_still_asks_for_some_disk() -> None:
    tiny = completion(units=("a", "b", "c"), artifacts={"triton/a": (1, DIGEST)}, duration_s=1.0)
    assert calibrate(WORK, [tiny]).required_bytes >= 1


def test_what_a_server_once_asked_for_joins_the_plan() -> None:
    earlier = [completion(missed=("bs8", "bs9")), completion(missed=("bs3",)), completion()]
    assert with_missed(WORK, earlier).units == ("bs1", "bs8", "bs3", "bs9")
    assert with_missed(WORK, [completion()]) == WORK
    assert with_missed(WORK, []) == WORK


def test_what_was_seen_not_to_work_is_not_tried_again() -> None:
    earlier = completion(outcome="unsupported", reason="no server starts", units=("bs8",), artifacts={})
    unable = known_unable(WORK, earlier, signature())
    assert unable is not None
    assert unable.error_type is ErrorType.UNSUPPORTED
    assert unable.message == f"no server starts; known since {MOMENT}, --rebuild inductor tries it again"
    assert known_unable(WORK, None, signature()) is None
    assert known_unable(WORK, completion(), signature()) is None, "what was built"
    assert known_unable(WORK.model_copy(update={"units": ("bs1",)}), earlier, signature()) is None, "a smaller batch"
    assert known_unable(WORK, earlier, signature(sglang_version="0.6.0")) is None


SERVER = ("python", "-m", "sglang.launch_server", "--port", "30000")
PROOF = Verification(verified_at=MOMENT, command=SERVER, ready_s=43.0)
KEYED = PROOF.model_copy(update={"command": (*SERVER, "--api-key", "***")})
IDLE, BUILDS, SKIPS = (decision(check=VALID), decision(), decision(op=StageOp.SKIP))


def serving(like: Decision) -> tuple[Decision, ...]:
    """A plan in which all stages but `serve` have nothing to do."""
    return (IDLE, SKIPS, like.model_copy(update={"stage": StageName.SERVE}))


@pytest.mark.parametrize(
    ("decisions", "how", "expected"),
    [
        (serving(BUILDS), {"on_gpu": False, "verify_only": True}, (False, "no_gpu")),
        (serving(BUILDS), {"asked": False}, (False, "requested")),
        # The proof alone: it also runs where no stage is selected, or serve is left out.
        (serving(SKIPS), {"verify_only": True, "proof": PROOF}, (True, "requested")),
        # A cache that nobody filled would only fail the proof.
        (serving(SKIPS), {"proof": PROOF}, (False, "serve_requested")),
        (serving(decision(plan=UNABLE)), {}, (False, "serve_unsupported")),
        ((BUILDS, *serving(decision(selected=False))), {}, (False, "serve_not_selected")),
        # rayprep's own servers leave torch.compile out where none starts with it; the user's own command does not.
        ((decision(plan=UNABLE), *serving(BUILDS)), {}, (True, "something_is_built")),
        ((decision(plan=UNABLE), *serving(BUILDS)), {"command": SERVER}, (False, "inductor_failed")),
        ((decision(plan=UNFIT), *serving(BUILDS)), {}, (False, "inductor_failed")),
        (serving(BUILDS), {"proof": PROOF}, (True, "something_is_built")),
        ((BUILDS, *serving(IDLE)), {"proof": PROOF}, (True, "something_is_built")),
        (serving(IDLE), {}, (True, "not_verified_yet")),
        (serving(IDLE), {"proof": PROOF, "command": (*SERVER, "--tp", "2")}, (True, "another_server_command")),
        (serving(IDLE), {"proof": PROOF, "command": SERVER}, (False, "verified")),
        (serving(IDLE), {"proof": PROOF, "slices": 2}, (True, "more_slices")),
        (serving(IDLE), {"proof": PROOF.model_copy(update={"slices": 4}), "slices": 2}, (False, "verified")),
        (serving(IDLE), {"proof": PROOF}, (False, "verified")),
        # Written down without its key, it is the same command all the same.
        (serving(IDLE), {"proof": KEYED, "command": (*SERVER, "--api-key", "sk-1")}, (False, "verified")),
    ],
)
def test_a_proof_is_run_where_it_would_tell_something_new(
    decisions: tuple[Decision, ...], how: dict[str, Any], expected: tuple[bool, str]
) -> None:
    defaults = {"asked": True, "verify_only": False, "on_gpu": True, "command": (), "slices": 1, "proof": None}
    got = decide_verify(decisions, **{**defaults, **how})
    assert (got.run, got.reason) == expected


def test_the_proof_for_people() -> None:
    assert str(NO_PROOF) == "verify: skip, verified"
    assert str(VerifyDecision(run=True, reason="not_verified_yet")) == "verify: run, not_verified_yet"


DEEP_GEMM, MOE, FLASHINFER, INDUCTOR, SERVE = StageName


def started(*building: StageName) -> list[tuple[tuple[StageName, ...], tuple[StageName, ...]]]:
    return [(wave.stages, wave.beside) for wave in waves(building)]


def test_compilers_share_the_cpus_and_a_tuner_or_a_server_starts_beside_flashinfers() -> None:
    assert started() == []
    assert started(DEEP_GEMM, FLASHINFER) == [((DEEP_GEMM, FLASHINFER), ())]
    assert started(DEEP_GEMM, FLASHINFER, SERVE) == [((DEEP_GEMM, FLASHINFER), ()), ((SERVE,), (FLASHINFER,))]
    assert started(MOE, FLASHINFER, SERVE) == [((FLASHINFER,), ()), ((MOE,), (FLASHINFER,)), ((SERVE,), (FLASHINFER,))]
    # A graph's compile times kernels that it launches by hand.
    assert started(FLASHINFER, INDUCTOR) == [((FLASHINFER,), ()), ((INDUCTOR,), ())]


@pytest.mark.parametrize("size", range(len(StageName) + 1))
def test_every_stage_that_builds_is_started_once(size: int) -> None:
    for building in combinations(StageName, size):
        found = waves(building)
        assert sorted(stage for wave in found for stage in wave.stages) == sorted(building)
        assert all(wave.stages for wave in found)


def test_another_moe_config_makes_the_server_compile_again() -> None:
    valid, builds = decision(check=VALID), decision()
    tunes = builds.model_copy(update={"stage": StageName.MOE_TUNE})
    serves = valid.model_copy(update={"stage": StageName.SERVE})
    other = valid.model_copy(update={"stage": StageName.FLASHINFER})
    after = with_consequences([tunes, other, serves])
    assert [each.action for each in after] == [Action.BUILD, Action.NOOP, Action.BUILD]
    assert after[-1].reason == "moe_config_is_new"
    known = tunes.model_copy(update={"action": Action.NOOP})
    assert with_consequences([known, other, serves]) == (known, other, serves)


@pytest.mark.parametrize("by_sglang", [True, False])
def test_new_graphs_of_a_server_are_found_by_the_next_one(by_sglang: bool) -> None:
    valid, builds = decision(check=VALID), decision()
    assert builds.work
    work = builds.work.model_copy(update={"by_sglang": by_sglang})
    compiles = builds.model_copy(update={"stage": StageName.INDUCTOR, "work": work})
    serves = valid.model_copy(update={"stage": StageName.SERVE})
    assert with_consequences([compiles, serves])[-1].reason == ("graphs_are_new" if by_sglang else serves.reason)
