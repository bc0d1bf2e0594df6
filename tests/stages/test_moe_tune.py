"""The moe_tune stage in real processes, on a GPU that the CPU plays, with stand-ins for sglang's kernel and Triton."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rayprep.host.layout import Layout
from rayprep.host.model_files import ModelFiles
from rayprep.host.scan import scan_cache
from rayprep.model.architecture import parse_architecture
from rayprep.model.caches import CacheName
from rayprep.model.cleanup import Cleanup
from rayprep.model.moe import MoeShape
from rayprep.model.moe_search import SEED, Measurement, tuning_digest
from rayprep.model.plan import Work
from rayprep.model.spec import DeviceChoice, MoeStrategy, PrepSpec
from rayprep.stages.moe_tune import MoeTuneStage, shape_of
from rayprep.stages.moe_tune_protocol import TuneRequest
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from tests.model.samples import DIGEST, signature

STAND_IN = Path(__file__).parents[1] / "fakes" / "moe_lib"
SHIPPED = STAND_IN / "sglang/srt/layers/moe/moe_runner/triton_utils/configs"
STAGE = MoeTuneStage()
NAME = "E=16,N=128,device_name=NVIDIA_PLAYED,dtype=fp8_w8a8,block_shape=[128, 128].json"
SIZES = (1, 8, 32)
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"num_key_value_heads": 4, "vocab_size": 100, "num_experts": 16, "num_experts_per_tok": 4},
    **{"moe_intermediate_size": 128, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
}


def request(
    device: DeviceChoice = DeviceChoice.CUDA, config: dict[str, object] | None = None, **spec: object
) -> StageRequest:
    text = json.dumps({**CONFIG, **(config or {})})
    values: dict[str, object] = {"model": "m", "moe_batch_sizes": SIZES, "moe_strategy": "fixed", **spec}
    return StageRequest(
        spec=PrepSpec.model_validate(values),
        model=ModelFiles(
            slug="small-moe", source=Path("/m/config.json"), digest=DIGEST, architecture=parse_architecture(text, "m")
        ),
        device=device,
        signature=signature(),
    )


@dataclass
class Host:
    base: Path
    env: dict[str, str] = field(default_factory=dict)
    ends: list[Cleanup] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "profiles", self.base / "telemetry")

    @property
    def cache(self) -> Path:
        return self.layout.cache(CacheName.MOE_CONFIGS)

    def tuning(self, asked: StageRequest) -> Path:
        shape = shape_of(asked)
        assert isinstance(shape, MoeShape)
        return self.cache / "tuning" / tuning_digest(asked.signature, shape)

    def measured(self, asked: StageRequest) -> list[Measurement]:
        lines = (self.tuning(asked) / "measurements.jsonl").read_bytes().splitlines()
        return [Measurement.model_validate_json(line) for line in lines]

    def compiled(self, asked: StageRequest) -> list[str]:
        """What was compiled, and by which way."""
        return (self.tuning(asked) / "compiled.txt").read_text().splitlines()

    def child_env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{STAND_IN}:{Path(__file__).parents[2]}", **self.env}

    def build(self, asked: StageRequest) -> Built:
        work = STAGE.plan(asked)
        assert isinstance(work, Work), work
        scratch = self.base / "scratch"
        for made in (scratch, self.cache):
            made.mkdir(parents=True, exist_ok=True)
        context = BuildContext(
            layout=self.layout,
            log=self.base / "stage.log",
            scratch=scratch,
            env=self.child_env(),
            gpus=(),
            host_gpus=(),
            lock_descriptors=(),
            deadline=time.monotonic() + 120,
            cancelled=lambda: False,
            report=lambda hint, done, total: None,
            tick=lambda: None,
            ended=self.ends.append,
        )
        return STAGE.build(asked, work, context)


def test_a_killed_tuning_goes_on_where_it_was(tmp_path: Path) -> None:
    host = Host(tmp_path)
    asked = request()
    home = host.tuning(asked)
    _killed_in_the_middle(host, asked)
    before = host.measured(asked)
    assert {each.trial.tokens for each in before} == {1, 8}, "it was killed before it came to 32"
    with (home / "measurements.jsonl").open("a") as log:
        log.write('{"trial": {"tokens": 32, "conf')  # what a full disk, or no power, leaves

    built = host.build(asked)

    artifacts = built.artifacts
    assert artifacts and artifacts.tuning and artifacts.config_file
    tuning = artifacts.tuning
    measured = [line for line in (home / "measurements.jsonl").read_bytes().splitlines() if not line.endswith(b'"conf')]
    trials = [Measurement.model_validate_json(line).trial for line in measured]
    assert len(set(trials)) == len(trials), "none was made twice"
    assert (tuning.reused, tuning.reused + tuning.measured) == (len(before), len(trials))
    assert built.warnings == ("1 lines of the tuner's log cannot be read, and were left out",)
    # Every kernel was compiled ahead; by a call only what SGLang's own config needs.
    by_calls = [line for line in host.compiled(asked) if line.startswith("a call")]
    assert {json.loads(line.partition(": ")[2])[0]["BLOCK_SIZE_N"] for line in by_calls} == {64}
    assert not (home / "kernels").exists()

    written = json.loads((host.cache / "configs" / "triton_3_6_0" / NAME).read_text())
    assert {*map(str, SIZES), "256", "8192"} <= written.keys()
    sizes = {each.batch_size: each for each in tuning.sizes}
    assert sizes.keys() == set(SIZES)
    for size, each in sizes.items():
        assert each.config and written[str(size)] == each.config
        assert each.speedup and each.speedup > 1
    assert written["8192"]["GROUP_SIZE_M"] == 32, "SGLang's own values where nothing was tuned"
    assert artifacts.active_config_link
    link = Path(artifacts.active_config_link.container_path)
    assert link.readlink() == Path("../triton_3_6_0") / NAME
    assert (host.cache / "configs/triton_3_5_1/old.json").read_text() == "{}\n"
    scan = scan_cache(host.layout.profiles, CacheName.MOE_CONFIGS)
    assert scan.links == 0, "the link is the host's own, and no obstacle"
    assert built.used == {f"moe_configs/configs/triton_3_6_0/{NAME}"} <= scan.files.keys()


def _killed_in_the_middle(host: Host, asked: StageRequest) -> None:
    home, hold = host.tuning(asked), host.base / "hold"
    hold.touch()
    (home / "kernels").mkdir(parents=True)
    shape = shape_of(asked)
    assert isinstance(shape, MoeShape)
    tune = TuneRequest(
        shape=shape,
        strategy=MoeStrategy.FIXED,
        sizes=SIZES,
        all_sizes=SIZES,
        log=str(home / "measurements.jsonl"),
        kernels=str(home / "kernels"),
        seed=SEED,
        gpus=1,
        compilers=2,
        capability=90,
        deadline_s=60,
    )
    file = host.base / "tune.json"
    file.write_text(tune.model_dump_json())
    env = {**host.child_env(), "TRITON_CACHE_DIR": tune.kernels, "FAKE_HOLD": str(hold), "FAKE_HOLD_AT": "32"}
    command = [sys.executable, "-P", "-m", "rayprep.stages.moe_tune_child", str(file)]
    with (host.base / "killed.log").open("wb") as log:
        child = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    log_of_all = home / "measurements.jsonl"
    until = time.monotonic() + 120
    try:
        while not (log_of_all.exists() and b'"tokens":8' in log_of_all.read_bytes()):
            assert child.poll() is None, (host.base / "killed.log").read_text()
            assert time.monotonic() < until, "it never came to 8 tokens"
            time.sleep(0.02)
        tree = psutil.Process(child.pid).children(recursive=True)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        hold.unlink()
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive, "its processes end with it"
