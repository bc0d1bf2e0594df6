"""Our MoE tuner beside SGLang's own, on a GPU: the same configs at one number of tokens, set-up apart.

    python tests/gpu/tuner_race.py official|ours|compare|rates FOLDER MODEL

FOLDER takes what each part leaves for the next. OFFICIAL is the folder with SGLang's script, which is not ours to ship:
benchmark/kernels/fused_moe_triton/{tuning_fused_moe_triton,common_utils}.py. TOKENS, CONFIGS and BUDGET (seconds, after
which `official` stops and can be started again) come from the environment.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from rayprep.model.spec import MoeStrategy
from rayprep.sglang.architecture import parse_architecture
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape, default_batch_sizes, moe_shape
from rayprep.stages.child.lines import StepLine
from rayprep.stages.moe_tune.protocol import TUNE_LINE, TunedLine, TuneRequest
from rayprep.stages.moe_tune.search import SEED, kernels
from rayprep.stages.moe_tune.space import official_space
from rayprep.stages.moe_tune.trial import Trial

TOKENS = int(os.environ.get("TOKENS", "64"))
CONFIGS = int(os.environ.get("CONFIGS", "160"))
BUDGET = float(os.environ.get("BUDGET", "450"))
CHUNK = 8
SAMPLE = 64
"""Configs of the official space that the rates of a sweep are measured with, at every number of tokens."""


def spread(space: Sequence[KernelConfig], count: int) -> list[KernelConfig]:
    """`count` of them, over all values of every parameter."""
    step = len(space) // count
    return [space[number * step + number % step] for number in range(count)]


def shape_of(model: Path) -> MoeShape:
    config = model / "config.json"
    shape = moe_shape(parse_architecture(config.read_text(), str(config)), 1, ())
    assert isinstance(shape, MoeShape), shape
    return shape


class Official:
    """SGLang's worker in this process: as Ray would start it, without Ray's own time."""

    def __init__(self, model: Path) -> None:
        sys.path.insert(0, os.environ["OFFICIAL"])
        module: Any = importlib.import_module("tuning_fused_moe_triton")
        self.module = module
        module.args = argparse.Namespace(model=str(model))
        module.tqdm = iter
        import torch

        torch.set_default_device("cuda")
        torch.cuda.manual_seed_all(0)
        module.set_global_server_args_for_scheduler(module.ServerArgs(model_path=str(model)))
        kind = module.BenchmarkWorker.__ray_metadata__.modified_class
        self.worker = kind.__new__(kind)
        self.worker.seed, self.worker.device_id = 0, 0
        known = module.get_model_config(str(model), 1)
        names = ("num_experts", "shard_intermediate_size", "hidden_size", "topk", "dtype")
        dtype = getattr(torch, str(known["dtype"]).removeprefix("torch."))
        self.layer = [dtype if name == "dtype" else known[name] for name in names]
        self.how = [True, False, False, False, False, known["block_shape"]]  # fp8_w8a8

    def time(self, config: KernelConfig, replays: int) -> float:
        us: float = self.module.benchmark_config(config.entry(), TOKENS, *self.layer, *self.how, num_iters=replays)
        return us

    def tune(self, space: Sequence[KernelConfig]) -> KernelConfig | None:
        """Its own loop over these."""
        try:
            best = self.worker.tune(TOKENS, *self.layer, *self.how, [config.entry() for config in space])
        except AssertionError:  # none of them runs
            return None
        return KernelConfig.model_validate(best)


class Progress(TypedDict):
    """How far the official tuner came; `best` has microseconds and configs."""

    tried: int
    tune_s: float
    setup_s: list[float]
    best: list[tuple[float, dict[str, int | bool]]]


def official(folder: Path, model: Path) -> None:
    started = time.monotonic()
    shape, kept = shape_of(model), folder / "official.json"
    space = spread(official_space(shape), CONFIGS)
    state: Progress = {"tried": 0, "tune_s": 0.0, "setup_s": [], "best": []}
    if kept.exists():
        state = json.loads(kept.read_text())
    worker = Official(model)
    worker.worker.benchmark(TOKENS, *worker.layer, *worker.how)  # SGLang's own modules, the default's kernels
    state["setup_s"].append(round(time.monotonic() - started, 1))
    while state["tried"] < len(space) and time.monotonic() - started < BUDGET:
        chunk = space[state["tried"] : state["tried"] + CHUNK]
        begun = time.monotonic()
        best = worker.tune(chunk)
        state["tune_s"] = round(state["tune_s"] + time.monotonic() - begun, 2)
        state["tried"] += len(chunk)
        if best:  # its loop keeps the fastest of a call: of these the fastest is found by its own measure once more
            state["best"].append((worker.time(best, 10), best.entry()))
        kept.write_text(json.dumps(state))
    state["best"].sort(key=lambda each: each[0])
    kept.write_text(json.dumps(state))
    print(f"official: {state['tried']} of {len(space)} configs in {state['tune_s']} s, set-up {state['setup_s']} s")
    print(f"official: best {state['best'][0] if state['best'] else None}")


def run_ours(folder: Path, shape: MoeShape, space: Sequence[KernelConfig], sizes: Sequence[int]) -> TunedLine:
    home = folder / f"ours-{len(space)}-{len(sizes)}"
    shutil.rmtree(home, ignore_errors=True)  # a stopped one's kernels and measurements would be counted as made
    (home / "kernels").mkdir(parents=True)
    request = TuneRequest(
        shape=shape,
        strategy=MoeStrategy.SWEEP,
        sizes=tuple(sizes),
        space=tuple(space),
        log=str(home / "measurements.jsonl"),
        kernels=str(home / "kernels"),
        seed=SEED,
        gpus=(0,),
        compilers=len(os.sched_getaffinity(0)),
        capability=90,
        deadline_s=300,
    )
    file = home / "request.json"
    file.write_text(request.model_dump_json())
    env = {**os.environ, "TRITON_CACHE_DIR": request.kernels}
    env.pop("SGLANG_MOE_CONFIG_DIR", None)
    command = [sys.executable, "-m", "rayprep.stages.moe_tune.child", str(file)]
    with (home / "log").open("wb") as log:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=log, timeout=590, check=False)
    said = [TUNE_LINE.validate_json(line) for line in done.stdout.splitlines()]
    last = next((line for line in said if not isinstance(line, StepLine)), None)
    if not isinstance(last, TunedLine):
        print("\n".join((home / "log").read_text(errors="replace").splitlines()[-30:]))
        raise SystemExit(f"ours failed: {last}")
    return last


def ours(folder: Path, model: Path) -> None:
    shape = shape_of(model)
    said = run_ours(folder, shape, spread(official_space(shape), CONFIGS), [TOKENS])
    (folder / "ours.json").write_text(said.model_dump_json())
    counts = said.counts
    total = counts.compile_s + counts.measure_s
    print(f"ours: {CONFIGS} configs in {total:.1f} s ({counts.compile_s} s for {counts.compiled} kernels, then")
    print(f"      {counts.measure_s} s for {counts.measured} measurements), {counts.failed} failed")
    print(f"ours: set-up {counts.setup_s} s")
    print(f"ours: {said.choices[0]}")


def compare(folder: Path, model: Path) -> None:
    """Both choices, by both ways of measuring, in turn."""
    theirs = json.loads((folder / "official.json").read_text())
    if theirs["tried"] < CONFIGS:
        raise SystemExit(f"official has tried {theirs['tried']} of {CONFIGS} configs: run it again, it goes on")
    mine = TunedLine.model_validate_json((folder / "ours.json").read_text())
    chosen = {"official": KernelConfig.model_validate(theirs["best"][0][1]), "ours": mine.choices[0].config}
    from rayprep.stages.moe_tune.bench import MoeBench

    bench, them = MoeBench(shape_of(model), SEED, 0), Official(model)
    times: dict[str, dict[str, list[float]]] = {"by ours": {}, "by official": {}}
    for _ in range(5):
        for name, config in chosen.items():
            measured = bench.measure(Trial(tokens=TOKENS, config=config, replays=40))
            times["by ours"].setdefault(name, []).append(measured.us or float("nan"))
            if config:
                times["by official"].setdefault(name, []).append(them.time(config, 100))
    best = {way: {name: round(min(values), 3) for name, values in each.items()} for way, each in times.items()}
    counts = mine.counts
    seconds = counts.compile_s + counts.measure_s
    told = {
        "tokens": TOKENS,
        "configs": {"official": theirs["tried"], "ours": CONFIGS},
        "official_tune_s": theirs["tune_s"],
        "official_setup_s": theirs["setup_s"],
        "ours_s": round(seconds, 2),
        "ours": counts.model_dump(),
        "share_of_its_time": round(seconds / theirs["tune_s"], 4),
        "choices": {name: config.entry() if config else None for name, config in chosen.items()},
        "us": best,
        "ours_over_official": {
            way: round(each["ours"] / each["official"], 4) for way, each in best.items() if "ours" in each
        },
    }
    (folder / "compare.json").write_text(json.dumps(told, indent=2))
    print(json.dumps(told, indent=2))


def rates(folder: Path, model: Path) -> None:
    """A sweep of the whole official space over all default sizes, reckoned from a sample of it."""
    shape, sizes = shape_of(model), default_batch_sizes(())
    space = official_space(shape)
    sample = spread(space, SAMPLE)
    counts = run_ours(folder, shape, sample, sizes).counts
    release = version("sglang")
    whole, part = (kernels(configs, shape, sizes, release) for configs in (space, sample))
    compile_s, measure_s = counts.compile_s * whole / part, counts.measure_s * len(space) / len(sample)
    told = {
        "sample": {"configs": len(sample), "sizes": list(sizes), **counts.model_dump()},
        "kernel_pairs": {"sample": part, "sweep": whole},
        "sweep": {
            "configs": len(space),
            "measurements": len(space) * len(sizes),
            "setup_s": counts.setup_s,
            "compile_s": round(compile_s, 1),
            "measure_s": round(measure_s, 1),
            "sum_s": round(counts.setup_s + compile_s + measure_s, 1),
            "cpus": len(os.sched_getaffinity(0)),
        },
    }
    if (folder / "official.json").exists():
        theirs = json.loads((folder / "official.json").read_text())
        # It compiles a config as often as we do, since it keeps its process; its measuring at other sizes comes on top.
        told["official_sweep_at_least_s"] = round(theirs["tune_s"] / max(1, theirs["tried"]) * whole, 0)
    (folder / "rates.json").write_text(json.dumps(told, indent=2))
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    parts = {"official": official, "ours": ours, "compare": compare, "rates": rates}
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    parts[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
