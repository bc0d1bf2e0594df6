"""What stages read: measurements, MoE configs, models' configs, a server's log, the lines of child processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from rayprep.base.errors import ErrorType
from rayprep.base.sealed import open_seal
from rayprep.host.layout import Layout
from rayprep.host.model_files import SHIPPED, find_model
from rayprep.model.caches import CacheName
from rayprep.model.events import Phase, event
from rayprep.model.spec import PrepSpec, check_against_model
from rayprep.model.tuning import TuningCounts
from rayprep.server.log_follower import LogFollower
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.log import LogReader, classify_failure
from rayprep.stages.child.lines import FailLine, StepLine
from rayprep.stages.deep_gemm.protocol import GEMM_LINE, KernelsLine
from rayprep.stages.flashinfer import protocol as flashinfer_protocol
from rayprep.stages.inductor import protocol as inductor_protocol
from rayprep.stages.moe_tune.files import config_text, kept_aside, place_config, seed, unseeded
from rayprep.stages.moe_tune.measurement_log import MeasurementLog
from rayprep.stages.moe_tune.protocol import TUNE_LINE
from rayprep.stages.moe_tune.trial import Measurement, Trial
from rayprep.store.moe_folder import digest_of, is_config, keep_aside
from tests.fuzz.resealing import resealed
from tests.fuzz.target import Target, require

_DATA = Path(__file__).parents[2] / "data"
_CONFIG = KernelConfig(BLOCK_SIZE_M=16, BLOCK_SIZE_N=32, BLOCK_SIZE_K=64, GROUP_SIZE_M=1)
_NAME = "E=8,N=64,device_name=NVIDIA_H200.json"


def measurement_targets(folder: Path) -> list[Target]:
    """Never a measurement that was not made."""
    folder.mkdir()
    path = folder / "measurements.jsonl"
    log = MeasurementLog(path)
    for tokens in (1, 2, 4, 8):
        log.append(
            Measurement(trial=Trial(tokens=tokens, config=_CONFIG, replays=4), us=tokens * 1.5, run="r", gpu="g")
        )
    log.append(Measurement(trial=Trial(tokens=16, config=None, replays=4), error="out of resource"))
    made, good = set(log.done.values()), path.read_bytes()

    def read(data: bytes) -> str:
        path.write_bytes(data)
        found = MeasurementLog(path)
        require(set(found.done.values()) <= made, "it was not measured")
        return "all" if len(found.done) == len(made) else "fewer"

    def read_resealed(data: bytes) -> str:
        path.write_bytes(b"".join(map(resealed, data.splitlines(keepends=True))))
        found = MeasurementLog(path)
        found.retry((1, 16))
        found.append(Measurement(trial=Trial(tokens=1, config=_CONFIG, replays=4), us=1.5))
        require(MeasurementLog(path).done == found.done, "another is read than was there")
        return "read"

    contents = b"\n".join(map(open_seal, good.splitlines())) + b"\n"
    return [
        Target("measurements.jsonl", good, read, "all", 1.2),
        Target("measurements.jsonl, sealed again", contents, read_resealed, "read", 0.6, every_value=1),
    ]


def config_target(folder: Path) -> Target:
    """A config of MoE kernels: one that a server cannot read is copied anew, and a user's is kept."""
    layout = Layout(folder / "profiles", folder / "telemetry")
    shipped = folder / "shipped" / "triton_3_6_0" / _NAME
    home = layout.cache(CacheName.MOE_CONFIGS) / "configs" / "triton_3_6_0"
    for place in (shipped.parent, home):
        place.mkdir(parents=True)
    good = json.dumps({"1": _CONFIG.entry(), "8": _CONFIG.entry()}, indent=4).encode() + b"\n"
    shipped.write_bytes(good)
    path = home / _NAME

    def read(data: bytes) -> str:
        path.write_bytes(data)
        shutil.rmtree(layout.cache(CacheName.MOE_CONFIGS) / "kept", ignore_errors=True)
        wanting = [place for _, place in unseeded(layout, shipped.parents[1])]
        require(not wanting or not is_config(data), "a config that a server reads is to be replaced")
        seed(layout, shipped.parents[1])
        require(is_config(path.read_bytes()) or len(data) == len(good), "what no server can read is left")
        path.write_bytes(data)
        keep_aside(layout, [str(path.relative_to(layout.profiles))])
        place_config(layout, "triton_3_6_0", _NAME, config_text({1: _CONFIG}))
        kept = list(layout.cache(CacheName.MOE_CONFIGS).glob("kept/*/*"))
        require(
            not is_config(data) or [digest_of(copy.read_bytes()) for copy in kept] == [digest_of(data)], "it is lost"
        )
        kept_aside(layout, path)
        return "config" if is_config(data) else "no config"

    return Target("MoE config", good, read, "config", 0.7)


def model_targets(folder: Path) -> list[Target]:
    """A model's config.json, and the file that names its revision in Hugging Face's cache."""
    home = folder / "model"
    home.mkdir(parents=True)
    path = home / "config.json"
    dense, experts = ((SHIPPED / name / "config.json").read_bytes() for name in ("tiny-dense", "tiny-moe"))

    def read(data: bytes) -> str:
        path.write_bytes(data)
        found = find_model(str(home), {})
        check_against_model(PrepSpec(model=str(home), tp=2), found.architecture)
        return "read"

    hub = folder / "hub"
    cached = hub / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "snapshots" / "0a1b2c").mkdir(parents=True)
    (cached / "snapshots" / "0a1b2c" / "config.json").write_bytes(dense)

    def read_reference(data: bytes) -> str:
        (cached / "refs" / "main").write_bytes(data)
        found = find_model("org/name", {"HF_HUB_CACHE": str(hub)})
        require(found.source.parents[1] == cached / "snapshots", f"it is read from {found.source}")
        return "read"

    return [
        Target("config.json of a dense model", dense, read, "read", 0.6, every_value=1),
        Target("config.json of a model of experts", experts, read, "read", 0.6, every_value=1),
        Target("refs/main of a model", b"0a1b2c\n", read_reference, "read", 0.4),
    ]


def server_log_targets(folder: Path) -> list[Target]:
    """A server's log, as it is followed."""
    folder.mkdir()
    path = folder / "server.log"

    def read(data: bytes) -> str:
        path.write_bytes(b"")
        reader = LogReader()
        follower = LogFollower(path, reader.hear)
        path.write_bytes(data)
        follower.follow()
        follower.finish()
        classify_failure(reader.signs, 1)
        if death := reader.death:
            death.model_dump_json()
        for record in (reader.args, reader.moe_configs, *reader.gemm_shapes):
            record.model_dump_json()
        if hint := reader.hint:
            line = event("serve", Phase.PROGRESS, hint=hint.text, done=hint.done, total=hint.total)
            line.json_line.encode()
            require(line.human_line.isprintable(), "a line does not print")
        return "heard"

    logs = ("server-cold.log", "server-warm.log", "server-out-of-resources.log")
    return [Target(f"log of a server, {name}", (_DATA / name).read_bytes(), read, "heard", 0.5) for name in logs]


Parse = Callable[[str], object]
"""Reads one line."""


def _child_lines() -> dict[str, tuple[Parse, bytes]]:
    """Each protocol with a few lines of it."""
    step = StepLine(hint="compiling", n=1, m=9).model_dump_json()
    failed = FailLine(error_type=ErrorType.COMPILE_FAILED, message="it did not compile", unit="u").model_dump_json()
    kernels = KernelsLine(used=("a", "b"), compiled=("a",)).model_dump_json()
    choice = {"tokens": 8, "config": _CONFIG.entry(), "us": 1.5, "stock_us": 2.5}
    tuned = {
        "event": "tuned",
        **{"name": _NAME, "down_name": _NAME, "folder": "triton_3_6_0", "triton_version": "3.6.0", "shipped": "/s"},
        "files": {"up": {"8": _CONFIG.entry()}},
        "choices": [choice],
        "counts": TuningCounts(measured=3).model_dump(),
    }
    lines: dict[str, tuple[Parse, list[str]]] = {
        "deep_gemm": (GEMM_LINE.validate_json, [kernels]),
        "flashinfer": (flashinfer_protocol.CHILD_LINE.validate_json, ['{"event":"modules","modules":[]}']),
        "inductor": (inductor_protocol.CHILD_LINE.validate_json, ['{"event":"graphs","graphs":[],"used":["a"]}']),
        "moe_tune": (TUNE_LINE.validate_json, [json.dumps(tuned)]),
    }
    return {name: (parse, "\n".join([step, *own, failed]).encode()) for name, (parse, own) in lines.items()}


def child_targets() -> list[Target]:
    """What a child prints: a line of the protocol, or one for the stage's log."""

    def target(name: str, parse: Parse, good: bytes) -> Target:
        def read(data: bytes) -> str:
            known = 0
            for line in data.split(b"\n"):
                known += _hear(parse, line.decode(errors="replace"))
            return "all" if known == 3 else "fewer"

        return Target(f"lines of {name}'s child", good, read, "all", 0.3, every_value=1)

    return [target(name, parse, good) for name, (parse, good) in _child_lines().items()]


def _hear(parse: Parse, line: str) -> bool:
    try:
        said = parse(line)
    except ValidationError:
        return False
    if isinstance(said, StepLine):
        event("serve", Phase.PROGRESS, hint=said.hint, done=said.n, total=said.m).human_line.encode()
    return True


def stage_targets(folder: Path) -> list[Target]:
    """All of these."""
    folder.mkdir()
    return [
        *measurement_targets(folder / "measurements"),
        config_target(folder / "configs"),
        *model_targets(folder / "models"),
        *server_log_targets(folder / "logs"),
        *child_targets(),
    ]
