"""Waves, retries and the end: no host starts too often, no wave too early, and all of it ends."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.model.fleet.rollout import HostPhase, HostState, Rollout, Step, fleet_status, make_rollout, next_step
from rayprep.model.result import RunStatus

WAITING, RUNNING, VERIFIED, READY, FAILED, LOST = HostPhase
HOSTS = tuple("abcdefghij")
OUTCOMES = (VERIFIED, READY, FAILED, LOST)


def states(**words: str) -> dict[str, HostState]:
    """`a="failed 2"`: failed, and started twice; once where no number is given."""
    split = {host: (*word.split(), "1")[:2] for host, word in words.items()}
    return {host: HostState(phase=HostPhase(phase), starts=int(starts)) for host, (phase, starts) in split.items()}


@pytest.mark.parametrize(
    ("canary", "wave", "sizes"),
    [
        (None, None, [10]),
        (1, None, [1, 3, 3, 3]),
        (2, "25%", [2, 3, 3, 2]),
        (2, "100%", [2, 8]),
        (2, "5", [2, 5, 3]),
        (None, "4", [4, 4, 2]),
        (None, "1%", [1] * 10),
        (10, None, [10]),
        (99, "3", [10]),
    ],
)
def test_hosts_are_dealt_out_in_their_order(canary: int | None, wave: str | None, sizes: list[int]) -> None:
    waves = make_rollout(HOSTS, canary=canary, wave=wave).waves
    assert [len(each) for each in waves] == sizes
    assert tuple(host for each in waves for host in each) == HOSTS


def test_a_fleet_of_no_hosts_ends_at_once_and_is_no_success() -> None:
    nobody = make_rollout((), canary=1)
    assert nobody.waves == ()
    assert next_step(nobody, {}) == Step(ended=True)
    assert fleet_status(nobody, {}) is RunStatus.ERROR


@pytest.mark.parametrize("wave", ["0", "0%", "101%", "-1", "2.5", "a%", "25 %", "", "\u0663"])
def test_a_wave_is_a_share_or_a_count(wave: str) -> None:
    with pytest.raises(BadRequest, match="--wave"):
        make_rollout(HOSTS, wave=wave)


@pytest.mark.parametrize(
    ("flags", "flag"),
    [({"canary": 0}, "--canary 0"), ({"max_failures": -1}, "--max-failures -1"), ({"node_retries": -1}, "--node-re")],
)
def test_numbers_below_their_least_are_refused(flags: dict[str, Any], flag: str) -> None:
    with pytest.raises(BadRequest, match=flag):
        make_rollout(HOSTS, **flags)


def test_failures_stop_waves_unless_told_otherwise_and_never_the_one_wave() -> None:
    assert make_rollout(HOSTS).max_failures is None
    assert make_rollout(HOSTS, canary=1).max_failures == 0
    assert make_rollout(HOSTS, canary=1, max_failures=3).max_failures == 3


ALL = Rollout(waves=(("a", "b", "c"),))
CANARY = Rollout(waves=(("a", "b"), ("c", "d"), ("e",)), max_failures=1)


@pytest.mark.parametrize(
    ("rollout", "now", "expected"),
    [
        (ALL, {}, Step(start=("a", "b", "c"))),
        (ALL, states(a="running", b="verified"), Step(start=("c",))),
        (ALL, states(a="running", b="verified", c="failed 2"), Step()),
        # A retry waits for no other host.
        (ALL, states(a="running", b="failed", c="lost"), Step(start=("b", "c"))),
        (ALL, states(a="lost 2", b="failed 2", c="failed"), Step(start=("c",))),
        (ALL, states(a="lost 2", b="failed 2", c="verified 2"), Step(ended=True)),
        (CANARY, {}, Step(start=("a", "b"))),
        (CANARY, states(a="verified", b="running"), Step()),
        (CANARY, states(a="verified", b="failed"), Step(start=("b",))),
        (CANARY, states(a="verified", b="lost 2"), Step(start=("c", "d"))),
        # What failed in an earlier wave counts on.
        (CANARY, states(a="verified", b="lost 2", c="failed 2", d="running 2"), Step()),
        (
            CANARY,
            states(a="verified", b="lost 2", c="failed 2", d="verified"),
            Step(ended=True, stopped="failed hosts: 2, --max-failures 1; not started: 1"),
        ),
        # After the last wave there is nothing to stop.
        (CANARY, states(a="lost 2", b="verified", c="verified", d="verified", e="lost 2"), Step(ended=True)),
    ],
)
def test_what_starts_now(rollout: Rollout, now: dict[str, HostState], expected: Step) -> None:
    assert next_step(rollout, now) == expected


@pytest.mark.parametrize(
    ("rollout", "now", "expected"),
    [
        (ALL, states(a="verified", b="verified", c="verified 2"), RunStatus.OK),
        (ALL, states(a="verified", b="lost 2", c="verified"), RunStatus.PARTIAL),
        (ALL, states(a="failed 2", b="lost 2", c="failed 2"), RunStatus.ERROR),
        (ALL, states(a="verified", b="verified", c="running"), RunStatus.PARTIAL),
        (ALL, {}, RunStatus.PARTIAL),
        (CANARY, states(a="failed 2", b="failed 2"), RunStatus.ERROR),
        (CANARY, states(a="verified", b="verified", c="failed 2", d="failed 2"), RunStatus.PARTIAL),
    ],
)
def test_how_the_fleet_stands(rollout: Rollout, now: dict[str, HostState], expected: RunStatus) -> None:
    assert fleet_status(rollout, now) is expected


def test_an_interrupted_fleet_is_never_ok() -> None:
    done = states(a="verified", b="verified", c="verified")
    assert fleet_status(ALL, done, interrupted=True) is RunStatus.PARTIAL


@given(
    st.integers(0, 3),
    st.none() | st.integers(1, 4),
    st.none() | st.sampled_from(["1", "25%", "3"]),
    st.none() | st.integers(0, 3),
    st.data(),
)
def test_every_rollout_ends_in_order(
    retries: int, canary: int | None, wave: str | None, max_failures: int | None, data: st.DataObject
) -> None:
    rollout = make_rollout(HOSTS, canary=canary, wave=wave, max_failures=max_failures, node_retries=retries)
    now: dict[str, HostState] = {}
    for _ in range(len(HOSTS) * (1 + retries) + 1):
        step = next_step(rollout, now)
        for host in step.start:
            _assert_that_earlier_waves_ended(rollout, now, host)
            now[host] = now.get(host, HostState()).started()
        running = sorted(host for host, state in now.items() if state.phase is RUNNING)
        if not running:
            break
        host = data.draw(st.sampled_from(running))
        now[host] = now[host].ended(data.draw(st.sampled_from(OUTCOMES)))
    assert step == next_step(rollout, now)
    assert step.ended
    assert all(state.starts <= 1 + retries for state in now.values())
    final = sum(not state.phase.is_good for state in now.values())
    limit = rollout.max_failures
    assert (len(now) == len(HOSTS)) == (not step.stopped)
    assert not step.stopped or (limit is not None and final > limit)
    # Each was retried as often as it could be, whatever became of the others.
    assert all(state.phase.is_good or state.starts == 1 + retries for state in now.values())


def _assert_that_earlier_waves_ended(rollout: Rollout, now: dict[str, HostState], host: str) -> None:
    number = next(number for number, wave in enumerate(rollout.waves) if host in wave)
    earlier = [now[each] for wave in rollout.waves[:number] for each in wave]
    failed = [state for state in earlier if not state.phase.is_good]
    assert all(state.phase in (FAILED, LOST) and state.starts == 1 + rollout.node_retries for state in failed)
    assert rollout.max_failures is None or len(failed) <= rollout.max_failures
