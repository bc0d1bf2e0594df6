"""Limits, memory, clock and init: the decisions from facts, and readers of real files."""

import resource
import time
from pathlib import Path

import pytest

from rayprep.base.records import parse_utc
from rayprep.doctor import clock_checks, init_checks, system_checks
from rayprep.doctor.findings import State
from tests.doctor.words import FAIL, GIB, OK, WARN

UNLIMITED = resource.RLIM_INFINITY


class TestSystem:
    @pytest.mark.parametrize(
        ("soft", "hard", "state"),
        [
            (65535, 65535, OK),
            (1024, 1048576, OK),
            (1024, UNLIMITED, OK),
            (UNLIMITED, UNLIMITED, OK),
            (1024, 4096, WARN),
            (65534, 65534, WARN),
        ],
    )
    def test_open_files(self, soft: int, hard: int, state: State) -> None:
        assert system_checks.judge_open_files(soft, hard).state is state

    @pytest.mark.parametrize(("limit", "state"), [(4095, WARN), (4096, OK), (UNLIMITED, OK)])
    def test_processes(self, limit: int, state: State) -> None:
        assert system_checks.judge_processes(limit).state is state

    @pytest.mark.parametrize(
        ("total", "available", "limit", "state", "words"),
        [
            (64, 32, None, OK, "32.0 GiB of 64.0 GiB"),
            (64, 3, None, WARN, "3.0 GiB of 64.0 GiB"),
            (64, 0.5, None, FAIL, "0.5 GiB of 64.0 GiB"),
            (64, 32, 2, WARN, "2.0 GiB of 2.0 GiB available (the container's limit; the host has 64.0 GiB)"),
            (64, 32, 1 << 33, OK, "32.0 GiB of 64.0 GiB"),
        ],
    )
    def test_memory(self, total: float, available: float, limit: int | None, state: State, words: str) -> None:
        bound = None if limit is None else limit * GIB
        finding = system_checks.judge_memory(int(total * GIB), int(available * GIB), bound)
        assert finding.state is state
        assert words in finding.message

    def test_the_smallest_limit_on_the_way_up_counts_in_version_2(self, tmp_path: Path) -> None:
        (tmp_path / "pod" / "container").mkdir(parents=True)
        (tmp_path / "pod" / "memory.max").write_text("2048\n")
        (tmp_path / "pod" / "container" / "memory.max").write_text("max\n")
        assert system_checks.cgroup_memory_limit("0::/pod/container\n", tmp_path) == 2048
        assert system_checks.cgroup_memory_limit("0::/\n", tmp_path) is None

    def test_in_version_1_a_container_sees_its_own_group_at_the_top(self, tmp_path: Path) -> None:
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory" / "memory.limit_in_bytes").write_text("4096\n")
        membership = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n"
        assert system_checks.cgroup_memory_limit(membership, tmp_path) == 4096

    @pytest.mark.parametrize(("free", "state"), [(64 << 20, WARN), (2 * GIB, OK)])
    def test_shared_memory(self, free: int, state: State) -> None:
        assert system_checks.judge_shared_memory(free).state is state

    @pytest.mark.parametrize(("encoding", "state"), [("utf-8", OK), ("UTF8", OK), ("ascii", WARN), ("latin-1", WARN)])
    def test_encoding(self, encoding: str, state: State) -> None:
        assert system_checks.judge_encoding(encoding, "LANG=x").state is state


class TestClock:
    NOW = parse_utc("2026-11-21T12:00:00Z").timestamp()

    @pytest.mark.parametrize(
        ("now", "newest", "step", "state"),
        [
            (NOW, NOW - 5, 0.01, OK),
            (NOW, NOW + 30, 0.01, OK),
            (NOW, NOW + 3600, 0.01, FAIL),
            (0.0, -1.0, 0.01, FAIL),
            (NOW + 100 * 366 * 86400, NOW, 0.01, FAIL),
            (NOW, NOW - 5, -0.5, FAIL),
        ],
    )
    def test_clock(self, now: float, newest: float, step: float, state: State) -> None:
        assert clock_checks.judge_clock(clock_checks.Clock(now, newest, step)).state is state

    def test_the_reading_is_of_this_host(self) -> None:
        clock = clock_checks.read_clock()
        assert abs(clock.now - time.time()) < 5
        newest = max(path.stat().st_mtime for path in Path(clock_checks.__file__).parents[1].rglob("*.py"))
        assert clock.newest_file == newest

    @pytest.mark.parametrize(
        ("answer", "state", "words"),
        [
            ("NTPSynchronized=yes\n", OK, "synchronised"),
            ("NTPSynchronized=no\n", WARN, "not synchronised"),
            ("something else", OK, "unknown: something else"),
            (None, OK, "unknown: no bus"),
        ],
    )
    def test_what_timedatectl_says(self, answer: str | None, state: State, words: str) -> None:
        finding = clock_checks.judge_ntp(answer, "" if answer else "no bus")
        assert (finding.state, finding.message) == (state, words)


class TestInit:
    def test_a_name_may_hold_parentheses_and_spaces(self) -> None:
        assert init_checks.parse_stat("7 (a (b) c) Z 1 7 7 0") == init_checks.Process("a (b) c", "Z", 1)

    def test_only_a_zombie_that_stays_is_bad(self) -> None:
        assert init_checks.judge_init(init_checks.Orphan("tini (pid 1)", stays_zombie=False)).state is OK
        finding = init_checks.judge_init(init_checks.Orphan("sleep (pid 1)", stays_zombie=True))
        assert finding.state is WARN
        assert "--init" in (finding.remedy or "")
