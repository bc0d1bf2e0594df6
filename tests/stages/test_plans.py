"""A plan goes by its request alone: not by the environment, nor by what lies on this host."""

import builtins
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rayprep.host.model_files import ModelFiles
from rayprep.model.plan import StagePlan
from rayprep.model.spec import DeviceChoice, PrepSpec
from rayprep.model.stages import StageName
from rayprep.sglang.architecture import parse_architecture
from rayprep.stages.protocol import StageRequest
from rayprep.stages.table import BY_NAME
from tests.model.samples import DIGEST, signature
from tests.stages.contexts import MEANS

CONFIG = Path(__file__).parents[1] / "gpu" / "models" / "qwen3-moe-fp8-4l" / "config.json"
ASKED = {
    builtins: ("open",),
    os: ("open", "stat", "lstat", "listdir", "scandir", "access", "getenv", "cpu_count", "sched_getaffinity"),
    shutil: ("which",),
}
FLAGS = (
    (),
    ("--attention-backend=flashinfer",),
    ("--enable-torch-compile", "--cuda-graph-max-bs=4"),
    ("--moe-runner-backend=deep_gemm",),
)


def refuse(name: str) -> Callable[..., object]:
    def ask(*args: object, **_: object) -> object:
        raise AssertionError(f"a plan asks this host: {name}{args}")

    return ask


class NoEnvironment(dict[str, str]):
    def __getitem__(self, name: str) -> str:
        raise AssertionError(f"a plan reads {name} of the environment")

    get = __getitem__  # type: ignore[assignment]  # for whoever asks with a default, too


def request(device: DeviceChoice, flags: tuple[str, ...], **environ: str) -> StageRequest:
    return StageRequest(
        spec=PrepSpec(model="m", server_args=flags, moe_tuner_script="/not/there.py"),
        model=ModelFiles("m", CONFIG, DIGEST, parse_architecture(CONFIG.read_text(encoding="utf-8"), "m")),
        device=device,
        signature=signature(),
        means=replace(MEANS, environ=environ, tuner_script=True, ninja=True),
    )


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("device", [DeviceChoice.CUDA, DeviceChoice.CPU])
@pytest.mark.parametrize("stage", StageName)
def test_a_plan_asks_nothing_of_this_host(
    stage: StageName, device: DeviceChoice, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(device, flags)
    expected: StagePlan = BY_NAME[stage].plan(asked)
    with monkeypatch.context() as host:
        for place, names in ASKED.items():
            for name in names:
                host.setattr(place, name, refuse(name))
        host.setattr(os, "environ", NoEnvironment())
        assert BY_NAME[stage].plan(asked) == expected


def test_the_environment_that_counts_is_the_requests() -> None:
    plan = BY_NAME[StageName.DEEP_GEMM].plan(request(DeviceChoice.CUDA, (), SGLANG_ENABLE_JIT_DEEPGEMM="0"))
    assert plan != BY_NAME[StageName.DEEP_GEMM].plan(request(DeviceChoice.CUDA, ()))
