"""Processes that stay: each question is answered once, whatever the answer does to the process."""

import os
import time
from collections.abc import Callable
from multiprocessing import get_context

import psutil
import pytest

from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.process_bench import ProcessBench
from rayprep.stages.moe_tune.protocol import TuneRequest
from rayprep.stages.moe_tune.workers import Worker, WorkerFailed, WorkerKilled, ask_all


def setup() -> Callable[[str], str]:
    return answer


def answer(question: str) -> str:
    if question == "die":
        os._exit(7)
    if question == "hang":
        time.sleep(60)
    if question == "raise":
        raise ValueError("no such thing")
    return f"{question}!"


def setup_who() -> Callable[[int], int]:
    return who


def who(question: int) -> int:
    time.sleep(0.02)  # so that one alone cannot have answered them all
    return os.getpid()


def broken() -> Callable[[str], str]:
    raise RuntimeError("No CUDA GPUs are available")


def test_each_question_has_its_answer_or_its_reason() -> None:
    workers = [Worker(get_context("spawn"), setup) for _ in range(2)]
    try:
        questions = ["a", "raise", "b", "die", "c", "hang", "d"]
        got = {question: (said, why) for question, said, why in ask_all(workers, zip(questions), 1.0)}
        pids = [worker._process.pid for worker in workers]
    finally:
        for worker in workers:
            worker.end()
    assert {question: said for question, (said, _) in got.items() if said} == {each: f"{each}!" for each in "abcd"}
    assert got["raise"][1] == "ValueError: no such thing"
    assert got["die"][1] == "lost: the process ended with status 7"
    assert got["hang"][1] == "lost: no answer within 1 s"
    assert not [pid for pid in pids if pid and psutil.pid_exists(pid)]


def test_one_process_answers_all_of_a_group_in_its_order() -> None:
    workers = [Worker(get_context("spawn"), setup_who) for _ in range(2)]
    groups = [range(n, n + 5) for n in range(0, 100, 5)]
    try:
        for worker in workers:
            worker.wait_until_ready()
        told = [(question, pid) for question, pid, _ in ask_all(workers, groups, 10.0)]
    finally:
        for worker in workers:
            worker.end()
    by = dict(told)
    assert len(by) == 100
    assert all(len({by[question] for question in group}) == 1 for group in groups)
    assert len(set(by.values())) == 2, "the groups are shared"
    asked = [question for question, _ in told]
    assert all(sorted(group, key=asked.index) == list(group) for group in groups)


def test_what_is_one_processs_own_nobody_else_answers() -> None:
    workers = [Worker(get_context("spawn"), setup_who) for _ in range(2)]
    try:
        told = {question: pid for question, pid, _ in ask_all(workers, [[0]], 10.0, {1: [[1, 2], [3]]})}
        assert {told[question] for question in (1, 2, 3)} == {workers[1].call(4, 10.0)}
    finally:
        for worker in workers:
            worker.end()


def test_a_process_that_somebody_killed_ends_it_all() -> None:
    worker = Worker(get_context("spawn"), setup)
    try:
        worker.wait_until_ready()
        assert worker._process.pid
        psutil.Process(worker._process.pid).terminate()
        with pytest.raises(WorkerKilled, match="killed by signal 15"):
            answers = ask_all([worker], [["a"]], 10.0)
            list(answers)
    finally:
        worker.end()


def test_a_process_that_cannot_be_set_up_says_why() -> None:
    worker = Worker(get_context("spawn"), broken)
    try:
        with pytest.raises(WorkerFailed, match="RuntimeError: No CUDA GPUs are available"):
            answers = ask_all([worker], [["a"], ["b"]], 10.0)
            list(answers)
    finally:
        worker.end()
    assert list(ask_all([], [], 1.0)) == []


def test_what_the_tuner_starts_is_started_when_its_set_up_is_timed() -> None:
    shape = MoeShape(experts=8, width=128, hidden=128, top_k=2)
    tuning = TuneRequest(
        **{"shape": shape, "strategy": "fixed", "sizes": (1,), "log": "/nowhere", "seed": 0},
        **{"kernels": "/nowhere", "gpus": (0,), "compilers": 1, "capability": 90, "deadline_s": 1.0},
    )
    before = set(psutil.Process().children(recursive=True))
    bench = ProcessBench(tuning)
    try:
        # What another test has left may end meanwhile.
        assert set(psutil.Process().children(recursive=True)) <= before
    finally:
        bench.close()
