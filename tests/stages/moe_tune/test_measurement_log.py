"""The tuner's log of measurements: whatever stands in it, and whatever happens to its writer."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayprep.base.errors import HostUnfit
from rayprep.stages.child.failures import failure
from rayprep.stages.moe_tune.measurement_log import MeasurementLog
from rayprep.stages.moe_tune.trial import Measurement, Trial


def measurement(tokens: int) -> Measurement:
    return Measurement(trial=Trial(tokens=tokens, config=None, replays=4), us=1.5)


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    log = MeasurementLog(tmp_path / "log")
    failed = Measurement(trial=Trial(tokens=3, config=None, replays=4), error="out of resource")
    for each in (measurement(1), measurement(2), failed):
        log.append(each)
    again = MeasurementLog(tmp_path / "log")
    assert list(again.done.values()) == [measurement(1), measurement(2), failed]
    assert again.unreadable == 0


@pytest.mark.parametrize(
    "rest", [b'{"trial": {"tok', b"\xff\x00\xfe", b'{"us": 1}\n', b"[]\nnull", b'{"trial": {}}\n\n']
)
def test_half_a_line_harms_neither_those_before_nor_those_after(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "log"
    MeasurementLog(path).append(measurement(1))
    with path.open("ab") as file:
        file.write(rest)
    MeasurementLog(path).append(measurement(2))
    found = MeasurementLog(path)
    assert list(found.done.values()) == [measurement(1), measurement(2)]
    assert found.unreadable >= 1


@pytest.mark.parametrize(
    "error",
    [
        "OutOfMemoryError: CUDA out of memory. Tried",
        "RuntimeError: Triton Error [CUDA]: out of memory",
        "AcceleratorError: CUDA error: out of memory",
        "MemoryError: ",
        "OSError: [Errno 12] Cannot allocate memory",
        "OSError: [Errno 24] Too many open files: '/p/kernels/x'",
        "OSError: [Errno 28] No space left on device: '/p/kernels/x'",
        "OSError: [Errno 116] Stale file handle",
        "RuntimeError: can't start new thread",
        "lost: no answer within 300 s",
    ],
)
def test_what_the_machine_lacked_may_be_there_the_next_time(tmp_path: Path, error: str) -> None:
    log = MeasurementLog(tmp_path / "log")
    log.append(Measurement(trial=measurement(1).trial, error=error))
    again = MeasurementLog(tmp_path / "log")
    assert again.done == log.done
    again.retry((2, 3))
    assert len(again.done) == 1, "nobody asks for one token"
    again.retry((1, 2))
    assert again.done == {}


@pytest.mark.parametrize(
    "error",
    [
        "OutOfResources: out of resource: shared memory, Required: 294912, Hardware limit: 232448. Reducing",
        "OutOfMemoryError: out of resource: triton_mm Required: 294912 Hardware limit:232448",
        "RuntimeError: PassManager::run failed",
        "lost: the process ended with status 70",
    ],
)
def test_what_the_config_asks_too_much_for_is_remembered(tmp_path: Path, error: str) -> None:
    failed = Measurement(trial=measurement(1).trial, error=error)
    MeasurementLog(tmp_path / "log").append(failed)
    again = MeasurementLog(tmp_path / "log")
    again.retry((1,))
    assert again.done == {failed.trial: failed}


def test_of_two_measurements_the_later_counts(tmp_path: Path) -> None:
    later = measurement(1).model_copy(update={"us": 2.5, "run": "later"})
    log = MeasurementLog(tmp_path / "log")
    log.append(measurement(1))
    log.append(later)
    assert MeasurementLog(tmp_path / "log").done == {later.trial: later}


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = MeasurementLog(tmp_path / "log")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        log.append(measurement(1))
    assert failure(caught.value).error_type == "insufficient_disk"


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("victim"))


@pytest.mark.parametrize("make", [_link, os.mkfifo, Path.mkdir])
def test_what_is_no_plain_file_is_neither_read_nor_written(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "victim").touch()
    log = MeasurementLog(tmp_path / "log")
    make(tmp_path / "log")
    with pytest.raises(HostUnfit, match="is no plain file") as caught:
        MeasurementLog(tmp_path / "log")
    with pytest.raises(HostUnfit):
        log.append(measurement(1))
    assert (tmp_path / "victim").read_bytes() == b""
    said = failure(caught.value)
    assert (said.error_type, said.message) == ("permissions_unexpected", caught.value.line)


def test_a_measurement_whose_checksum_is_wrong_or_not_there_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = MeasurementLog(path)
    log.append(measurement(1))
    log.append(measurement(2))
    first, second = path.read_bytes().splitlines()
    plain = measurement(3).model_dump_json().encode()
    for damaged in (first.replace(b"1.5", b"1.4"), first.replace(b'"us"', b'"ur"'), plain):
        path.write_bytes(b"\n".join([damaged, second, b""]))
        found = MeasurementLog(path)
        assert (list(found.done), found.unreadable) == ([measurement(2).trial], 1)


def test_empty_lines_are_no_damage_and_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    MeasurementLog(path).append(measurement(1))
    path.write_bytes(b"\n" * (4 << 20) + path.read_bytes())
    started = time.monotonic()
    found = MeasurementLog(path)
    assert (list(found.done.values()), found.unreadable) == ([measurement(1)], 0)
    assert time.monotonic() - started < 5
