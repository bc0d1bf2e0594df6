"""What is read of a host once, for all that is planned on it."""

import os
from pathlib import Path

import pytest

from rayprep.host.means import read_means


@pytest.mark.parametrize("there", [True, False])
def test_ninja_is_looked_for_where_a_build_would_look(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "ninja").write_text("#!/bin/sh\n")
        (tmp_path / "ninja").chmod(0o755)
    assert read_means({"PATH": str(tmp_path)}, None).ninja is there


@pytest.mark.parametrize("script", [None, "", "missing.py", "a\0b", "."])
def test_a_tuner_that_is_no_file_is_not_there(script: str | None) -> None:
    assert read_means({}, script).tuner_script is False


def test_a_tuner_that_is_there(tmp_path: Path) -> None:
    script = tmp_path / "tuning_fused_moe_triton.py"
    script.touch()
    assert read_means({}, str(script)).tuner_script is True


def test_the_cpus_are_those_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert read_means({}, None).cpus == 1
    finally:
        os.sched_setaffinity(0, before)
