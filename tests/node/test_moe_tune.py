"""The `moe_tune` stage as the node runs it: real processes, on a GPU that the CPU plays, with stand-ins for SGLang."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from rayprep.base.records import utc_now
from rayprep.base.sealed import read_sealed
from rayprep.model.caches import CacheName
from rayprep.model.events import Phase
from rayprep.model.result import Artifacts
from rayprep.model.spec import MoeStrategy, StageOp
from rayprep.model.stages import StageName
from rayprep.model.tuning import Tuning
from rayprep.node import take_survey
from rayprep.node.completion_writer import complete, new_completion
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.protocol import TuneRequest
from rayprep.stages.moe_tune.search import SEED, tuning_digest
from rayprep.stages.moe_tune.trial import Measurement
from rayprep.stages.moe_tune.units import shape_of
from rayprep.stages.protocol import Built
from rayprep.store.completions import write_completion
from rayprep.store.scan import scan_cache
from tests.needs import needs_torch
from tests.node.serving import FAKES, LIBRARY, Flags, Host, played, statuses
from tests.processes import alive, wait_for

pytestmark = [pytest.mark.tuner, needs_torch()]

STAND_IN = FAKES / "moe_lib"
MOE, SERVE = StageName.MOE_TUNE, StageName.SERVE
NAME = "E=16,N=128,device_name=NVIDIA_PLAYED,dtype=fp8_w8a8,block_shape=[128, 128].json"
SIZES = (1, 8, 32)
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"num_key_value_heads": 4, "vocab_size": 100, "num_experts": 16, "num_experts_per_tok": 4},
    **{"moe_intermediate_size": 128, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
}
NOT_LISTED = "fused_moe_kernel was not listed"
OTHERS = dict.fromkeys((StageName.DEEP_GEMM, StageName.FLASHINFER, StageName.INDUCTOR), StageOp.SKIP)


@dataclass
class MoeHost(Host):
    """With a model that has experts. STAND_IN must be on sys.path before LIBRARY."""

    @property
    def environ(self) -> dict[str, str]:
        inherited = super().environ
        path = f"{STAND_IN}{os.pathsep}{inherited['PYTHONPATH']}"
        return {**inherited, "PYTHONPATH": path, "FAKE_MOE_CONFIG": NAME}

    @property
    def model(self) -> Path:
        folder = self.base / "small-moe"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        return folder

    @property
    def cache(self) -> Path:
        return self.layout.cache(CacheName.MOE_CONFIGS)

    def tuning_of(self, asked: Flags) -> tuple[Path, MoeShape]:
        """Where the tuner of this request keeps its log, and what it tunes."""
        survey = take_survey(self.request(**asked), self.environ, gpus=self.gpus)
        shape = shape_of(survey.request)
        assert isinstance(shape, MoeShape)
        return self.cache / "tuning" / tuning_digest(survey.request.signature, shape), shape

    def log_lines(self) -> list[bytes]:
        logs = list(self.cache.glob("tuning/*/measurements.jsonl"))
        return logs[0].read_bytes().splitlines() if logs else []

    def measured(self) -> list[Measurement]:
        return [read_sealed(Measurement, line) for line in self.log_lines() if not line.endswith(b'"conf')]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MoeHost]:
    yield from played(MoeHost(tmp_path), monkeypatch, LIBRARY, STAND_IN)


def test_a_config_file_written_anew_covers_no_more_than_its_build(host: MoeHost) -> None:
    """Another host, or SGLang's own tuner, may have tuned what the earlier file said: its measurements are not here."""
    survey = take_survey(host.request(model=str(host.model), ops=OTHERS), host.environ, gpus=host.gpus)
    decision = next(each for each in survey.plan.decisions if each.stage is MOE)
    (host.cache / "configs").mkdir(parents=True)
    (host.cache / "configs" / NAME).write_text("{}")
    built = Built(units=("M=64",), used=frozenset({f"moe_configs/configs/{NAME}"}))
    scans = [scan_cache(host.layout.profiles, CacheName.MOE_CONFIGS)]
    empty = new_completion(survey, decision, "run-1", utc_now())
    first = complete(survey, empty, built, scans, None)
    more = replace(built, units=("M=8",))
    assert complete(survey, empty, more, scans, first).units == ("M=64", "M=8")
    assert complete(survey, empty, replace(more, whole=True), scans, first).units == ("M=8",)


def test_from_a_killed_tuning_to_a_servers_word_to_nothing_to_do(host: MoeHost) -> None:
    asked = Flags(model=str(host.model), moe_batch_sizes=SIZES, moe_strategy="fixed", ops=OTHERS)
    _kill_in_the_middle(host, asked)
    before = host.measured()
    assert {each.trial.tokens for each in before} == {1, 8}, "it was killed before it came to 32"
    with next(host.cache.glob("tuning/*/measurements.jsonl")).open("a") as log:
        log.write('{"trial": {"tokens": 32, "conf')  # what a full disk, or a loss of power, leaves

    result = host.ensure(**asked)

    assert result.exit_code == 0, result.errors
    skips = dict.fromkeys(("deep_gemm", "flashinfer", "inductor"), "skipped")
    assert statuses(result) == {**skips, "moe_tune": "ok", "serve": "ok"}
    started = next(each for each in host.events if (each.name, each.phase) == ("moe_tune", Phase.START))
    assert started.settings and started.settings["batch_sizes"] == SIZES, "not those of decode"
    stage, artifacts = result.stages[MOE], result.stages[MOE].artifacts
    assert artifacts and artifacts.tuning and artifacts.verify_log
    assert stage.verified_in_log and artifacts.verified_in_log
    assert Path(artifacts.verify_log.container_path).name == "serve.log"
    assert stage.warnings == ("1 lines of the tuner's log cannot be read, and were left out",)
    trials = [each.trial for each in host.measured()]
    assert len(set(trials)) == len(trials), "no measurement was made twice"
    tuning = artifacts.tuning
    assert (tuning.reused, tuning.reused + tuning.measured) == (len(before), len(trials))
    _compiled_ahead(host)
    served = list(host.layout.cache(CacheName.TRITON).glob("*.kernel"))
    used = {json.loads(file.read_text())[0]["BLOCK_SIZE_M"] for file in served}
    assert (len(served), used) == (tuning.served, {16, 64}), "no loser is in the servers' cache"
    _written(host, artifacts, tuning)

    more = take_survey(host.request(**(asked | Flags(moe_batch_sizes=(64,)))), host.environ, gpus=host.gpus)
    needs = [each.work.required_bytes for each in more.plan.decisions if each.stage is MOE and each.work]
    assert needs == [1 << 30], "of kernels, however small the file that the first tuning left"
    again = host.ensure(**asked)
    assert statuses(again) == {**skips, "moe_tune": "noop", "serve": "noop"}
    assert again.stages[MOE].verified_in_log, "as a server had said"
    known = again.stages[MOE].artifacts
    assert known and known.tuning == tuning, "as it was measured"
    assert known.verify_log == artifacts.verify_log
    assert (known.config_hash, known.config_file) == (artifacts.config_hash, artifacts.config_file)
    Path(artifacts.verify_log.container_path).unlink()
    later = host.ensure(**asked).stages[MOE]
    assert later.artifacts and later.verified_in_log
    assert later.artifacts.verify_log is None, "nobody is sent to a log that is gone"


@pytest.mark.slow  # it tunes and serves for two models
def test_a_config_that_came_later_is_served_and_proved_for_all_who_read_it(host: MoeHost) -> None:
    """Whoever tuned it, and under whichever flags: a server with it compiles other kernels."""
    asked = Flags(model=str(host.model), moe_batch_sizes=(1,), moe_strategy="fixed")
    left_out, others = asked | Flags(ops={**OTHERS, MOE: StageOp.SKIP}), "--random-seed=1"
    for flags in ((), (others,)):
        assert host.ensure(*flags, **left_out).exit_code == 0
    tuned = host.ensure(**(asked | Flags(ops=OTHERS, selected=(MOE,)))).stages[MOE]
    assert tuned.verified_in_log, "a server of its own has said so"
    for flags, request in (((), asked | Flags(ops=OTHERS)), ((others,), left_out)):
        plan = take_survey(host.request(*flags, **request), host.environ, gpus=host.gpus).plan
        (serve,) = (each for each in plan.decisions if each.stage is SERVE)
        assert serve.detail == f"a server reads another MoE config now: triton_3_6_0/{NAME}"
        result = host.ensure(*flags, **request)
        assert statuses(result)["serve"] == "ok"
        assert result.verify and (result.verify.ran, result.verify.status) == (True, "ok")
        assert set(statuses(host.ensure(*flags, **request)).values()) <= {"noop", "skipped"}


@pytest.mark.slow  # by default a whole run has a server's word
def test_a_config_of_which_no_server_has_spoken_gets_a_server(host: MoeHost) -> None:
    asked = Flags(model=str(host.model), moe_batch_sizes=(1,), moe_strategy="fixed")
    silent = host.ensure(**(asked | Flags(ops=OTHERS)), faults="dies-at-start")
    assert silent.stages[MOE].verified_in_log is None
    kept = host.completion(MOE)
    assert kept is not None
    alone = host.ensure(**(asked | Flags(ops={**OTHERS, SERVE: StageOp.SKIP}))).stages[MOE]
    assert (alone.status, alone.verified_in_log) == ("ok", True)
    assert alone.artifacts and alone.artifacts.tuning
    assert alone.artifacts.tuning.measured == 0, "it was all there"
    host.ensure(**(asked | Flags(ops=OTHERS, verify=False)))
    write_completion(host.layout, kept)  # as a run leaves it that was stopped before its server spoke
    heard = host.ensure(**(asked | Flags(ops=OTHERS, verify=False)))
    assert (heard.stages[SERVE].status, heard.stages[MOE].verified_in_log) == ("ok", True)


def test_a_kernel_that_was_not_listed_is_named_in_the_log(host: MoeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a release of SGLang that compiles in more than is known of it."""
    monkeypatch.setenv("FAKE_EARLY", "1")
    host.ensure(
        model=str(host.model), moe_batch_sizes=(16, 4096), moe_strategy="fixed", ops={**OTHERS, SERVE: StageOp.SKIP}
    )
    (log,) = host.layout.telemetry.glob("container_runs/*/moe_tune.log")
    assert NOT_LISTED in log.read_text(encoding="utf-8")


def _compiled_ahead(host: MoeHost) -> None:
    """Every kernel, but for that of SGLang's own config."""
    logs = host.layout.telemetry.glob("container_runs/*/moe_tune.log")
    assert not [log for log in logs if NOT_LISTED in log.read_text(encoding="utf-8")]
    lines = next(host.cache.glob("tuning/*/compiled.txt")).read_text().splitlines()
    by_calls = [line.partition(": ")[2] for line in lines if line.startswith("a call")]
    assert {json.loads(said)[0]["BLOCK_SIZE_N"] for said in by_calls} == {64}
    assert len(lines) > 20
    assert not list(host.cache.glob("tuning/*/kernels"))


def _written(host: MoeHost, artifacts: Artifacts, tuning: Tuning) -> None:
    file = host.cache / "configs" / "triton_3_6_0" / NAME
    written = json.loads(file.read_text())
    assert {*map(str, SIZES), "256", "8192"} <= written.keys()
    assert [each.batch_size for each in tuning.sizes] == list(SIZES)
    for each in tuning.sizes:
        assert each.config == written[str(each.batch_size)]
        assert each.speedup and each.speedup > 1
    assert written["8192"]["GROUP_SIZE_M"] == 32, "SGLang's own values where nothing was tuned"
    assert artifacts.config_file and Path(artifacts.config_file.container_path) == file
    assert artifacts.active_config_link
    link = Path(artifacts.active_config_link.container_path)
    assert (link.name, link.readlink()) == ("small-moe.json", Path("../triton_3_6_0") / NAME)
    assert (host.cache / "configs/triton_3_5_1/old.json").read_text() == "{}\n", "shipped, and seeded"
    assert scan_cache(host.layout.profiles, CacheName.MOE_CONFIGS).links == 0, "the link is no obstacle"
    completion = host.completion(MOE)
    assert completion and list(completion.artifacts) == [f"moe_configs/configs/triton_3_6_0/{NAME}"]


def _kill_in_the_middle(host: MoeHost, asked: Flags) -> None:
    """Starts the tuner's child as the stage does, and kills it hard while it measures."""
    hold = host.base / "hold"
    hold.touch()
    home, shape = host.tuning_of(asked)
    (home / "kernels").mkdir(parents=True)
    tune = TuneRequest(
        shape=shape,
        strategy=MoeStrategy.FIXED,
        sizes=SIZES,
        log=str(home / "measurements.jsonl"),
        kernels=str(home / "kernels"),
        seed=SEED,
        gpus=(0,),
        compilers=2,
        capability=90,
        deadline_s=60,
    )
    file = host.base / "tune.json"
    file.write_text(tune.model_dump_json())
    env = {**host.environ, "TRITON_CACHE_DIR": tune.kernels, "FAKE_HOLD": str(hold), "FAKE_HOLD_AT": "32"}
    command = [sys.executable, "-P", "-m", "rayprep.stages.moe_tune.child", str(file)]
    with (host.base / "killed.log").open("wb") as log:
        child = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    until = time.monotonic() + 120
    try:
        while not any(b'"tokens":8' in line for line in host.log_lines()):
            assert child.poll() is None, (host.base / "killed.log").read_text()
            assert time.monotonic() < until, "it never came to 8 tokens"
            time.sleep(0.02)
        tree = psutil.Process(child.pid).children(recursive=True)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        hold.unlink()
    # One that its parent has not reaped yet is dead.
    wait_for(lambda: not alive(tree), "its processes to end with it")


@pytest.mark.slow  # it tunes six times
def test_requests_of_one_model_do_not_undo_each_other(host: MoeHost) -> None:
    """Of other sizes, and with other flags: each is built once, and once more where the file has changed since."""

    def ran(*flags: str, sizes: tuple[int, ...] = ()) -> tuple[str, str]:
        asked = Flags(model=str(host.model), moe_batch_sizes=sizes, moe_strategy="fixed", ops=OTHERS, verify=False)
        result = host.ensure(*flags, **asked)
        assert result.exit_code == 0, result.errors
        return result.stages[MOE].status.value, result.stages[SERVE].status.value

    built, nothing = ("ok", "ok"), ("noop", "noop")
    assert [ran(sizes=sizes) for sizes in ((1,), (8,))] == [built, built]
    assert [ran(sizes=sizes) for sizes in ((1,), (8,), (1, 8))] == [nothing, nothing, nothing]
    few, many = "--cuda-graph-max-bs=160", "--cuda-graph-max-bs=200"
    file = host.cache / "configs" / "triton_3_6_0" / NAME
    before = file.read_bytes()
    for flag in (few, many):
        ran(flag, sizes=(1,))
    assert file.read_bytes() == before
    assert [ran(flag, sizes=(1,)) for flag in (few, many, few)] == [nothing, nothing, nothing]
    assert ran(sizes=(8,)) == nothing


@pytest.mark.slow  # by default a worker is refused its GPU, in stages/moe_tune
def test_a_gpu_that_somebody_else_fills_is_named_and_done_without(
    host: MoeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.gpu_count = 3
    asked = Flags(model=str(host.model), moe_batch_sizes=(1,), moe_strategy="fixed", ops=OTHERS, verify=False)
    monkeypatch.setenv("FAKE_FULL_GPUS", "0,1,2")
    failed = host.ensure(**asked).stages[MOE].errors[0]
    assert failed.error_type == "oom_during_warmup"
    assert "GPU 0: OutOfMemoryError: CUDA out of memory" in failed.message
    monkeypatch.setenv("FAKE_FULL_GPUS", "1")
    stage = host.ensure(**asked).stages[MOE]
    assert stage.status_code == 0, stage.errors
    assert stage.warnings[0].startswith("GPU 1 took no part in the tuning: OutOfMemoryError: CUDA out of memory")
    assert stage.artifacts
    assert stage.artifacts.tuning
    assert stage.artifacts.tuning.gpus == 2
