"""The files of a profiles root: completions, markers, holders in lock files, epochs, the store's id."""

import hashlib
import json
from pathlib import Path

from rayprep.base.records import to_json
from rayprep.base.sealed import is_sealed, open_seal
from rayprep.host.layout import Layout
from rayprep.host.locks import Holder, acquire, is_held, read_holder
from rayprep.model.completion import Completion
from rayprep.model.completion_text import completion_text
from rayprep.model.proof import Verification
from rayprep.model.stages import ANSWERS_FOR, StageName
from rayprep.model.tuning import TunedSize, Tuning
from rayprep.store.completions import read_completions
from rayprep.store.epochs import advance_epoch, highest_epoch
from rayprep.store.markers import Marker, read_markers, standing_since, write_marker
from rayprep.store.snapshot import Wanted, read_contents, take_snapshot
from rayprep.store.store_id import store_id
from tests.fuzz.resealing import resealed
from tests.fuzz.target import Target, require
from tests.model.samples import DIGEST, MOMENT, completion, signature

VALID = "valid"
_WANTED = Wanted("tiny-dense", DIGEST, 1)
_CONFIG = "E=8,N=64,device_name=NVIDIA_H200.json"
_FILES = {
    StageName.INDUCTOR: ("torchinductor/ab/cab.so", "torchinductor/fxgraph/zz/key/graph"),
    StageName.MOE_TUNE: (f"moe_configs/configs/triton_3_6_0/{_CONFIG}",),
    StageName.SERVE: ("triton/KEY/kernel.cubin", "sglang_jit/norm__arch_90a__tvmffi_1/norm.so"),
}
_TUNED = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4}


def _tuning() -> Tuning:
    size = TunedSize(batch_size=8, default_us=20.5, tuned_us=10.25, speedup=2.0, config=dict(_TUNED))
    return Tuning(
        tuner_version="1", strategy="auto", grid="short", dtype="fp8_w8a8", seed=None, sizes=(size,), compile_s=3.5
    )


_OF_STAGE: dict[StageName, dict[str, object]] = {
    StageName.INDUCTOR: {},
    StageName.MOE_TUNE: {"tuning": _tuning(), "verified_in_log": True},
    StageName.SERVE: {
        "verification": Verification(
            verified_at=MOMENT, command=("python", "-m", "sglang.launch_server"), ready_s=30.5
        ),
        "server_command": ("python3", "-m", "sglang.launch_server", "--model", "m"),
        "mem_fraction": 0.9,
        "missed": ("graph-1",),
    },
}


class CompletionFile:
    """One completion in two roots: one where its files lie, and one where the first of them is gone."""

    def __init__(self, folder: Path, made: Completion, good: bytes) -> None:
        self.made, self.good = made, good
        self.whole, self.gone = (Layout(folder / name, folder / "telemetry") for name in ("whole", "gone"))
        for layout, paths in ((self.whole, list(made.artifacts)), (self.gone, list(made.artifacts)[1:])):
            for path in paths:
                (layout.profiles / path).parent.mkdir(parents=True, exist_ok=True)
                (layout.profiles / path).write_bytes(content_of(path))
            layout.completions(made.stage).mkdir(parents=True)

    def read_only(self, data: bytes) -> str:
        """As `read`, where one that is read at all is enough: it takes a tenth of the time."""
        self._put(self.whole, data)
        found, _ = read_completions(self.whole, self.made.stage, _WANTED.slug, _WANTED.tp)
        return self.read(data) if found else "unreadable"

    def read(self, data: bytes) -> str:
        valid, found = self._look(self.whole, data)
        require(not valid or is_sealed(data) or self._has_same_names(data), "valid with other names")
        require(not valid or not is_sealed(self.good) or found == [self.made], "valid, and not what was written")
        require(not self._look(self.gone, data)[0], "valid with a file that is gone")
        return VALID if valid else "read" if found else "unreadable"

    def _look(self, layout: Layout, data: bytes) -> tuple[bool, list[Completion]]:
        stage = self.made.stage
        self._put(layout, data)
        contents = read_contents(layout, _WANTED.slug, _WANTED.tp)
        snapshot = take_snapshot(layout, contents, signature(), _WANTED)
        to_json(snapshot)
        caches = [getattr(snapshot, cache) for cache, owner in ANSWERS_FOR.items() if owner is stage]
        return any(cache.valid for cache in caches), list(contents.completions[stage])

    def _put(self, layout: Layout, data: bytes) -> None:
        folder = layout.completions(self.made.stage)
        for path in folder.iterdir():  # also what was written anew, without a secret
            path.unlink()
        (folder / f"{self.made.key}.json").write_bytes(data)

    def _has_same_names(self, data: bytes) -> bool:
        return names_in(json.loads(data)) <= names_in(json.loads(self.good))


def names_in(value: object) -> set[str]:
    """Every name at any depth of a JSON document."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {*(value if isinstance(value, dict) else ()), *(name for part in inner for name in names_in(part))}


def content_of(path: str) -> bytes:
    """What lies under a path that a completion lists."""
    return json.dumps({"1": _TUNED}).encode() if path.endswith(".json") else path.encode()


def made_for(stage: StageName, **changes: object) -> Completion:
    """A completion of that stage whose files are `content_of` their paths."""
    content = {path: content_of(path) for path in _FILES[stage]}
    listed = {path: (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") for path, data in content.items()}
    return completion(stage, artifacts=listed, **_OF_STAGE[stage], **changes)


def completion_targets(folder: Path) -> list[Target]:
    """Of this format, and of format 1 as an earlier version wrote it, of three stages."""
    targets = []
    for stage in _FILES:
        looked_for = {"moe_configs": {f"triton_3_6_0/{_CONFIG}": ""}} if stage is StageName.SERVE else {}
        made = made_for(stage, **looked_for)
        earlier = made_for(stage, schema_version="1")
        for form, text in (("2", completion_text(made)), ("1", earlier.model_dump_json() + "\n")):
            place, good = folder / f"{stage}-{form}", text.encode()
            file = CompletionFile(place, made, good)
            targets.append(Target(f"completion of {stage}, format {form}", good, file.read, VALID, 0.7, file.read_only))
    return [*targets, _resealed_completion(folder / "resealed")]


def _resealed_completion(folder: Path) -> Target:
    """Whatever it says then is what somebody has written; it must be read without harm all the same."""
    made = made_for(StageName.SERVE)
    good = open_seal(completion_text(made).encode())
    file = CompletionFile(folder, made, good)

    def read(data: bytes) -> str:
        valid, found = file._look(file.whole, resealed(data))
        for each in found:
            completion_text(each)
        return VALID if valid else "read" if found else "unreadable"

    return Target("completion, sealed again", good, read, VALID, 0.5, every_value=1)


def marker_target(folder: Path) -> Target:
    """Whatever is in it, it stands."""
    layout, stage, slug = Layout(folder / "profiles", folder / "telemetry"), StageName.INDUCTOR, "qwen"
    layout.profiles.mkdir(parents=True)
    write_marker(layout, slug, stage, Marker(owner_pid=7, started_at=MOMENT, run_id="run-1", host="host-1"))
    path = layout.marker(slug, stage)

    def read(data: bytes) -> str:
        path.write_bytes(data)
        found = read_markers(layout)
        require(set(found) == {(slug, stage)}, f"the markers that stand are {found}")
        require(standing_since(layout, stage), "it stands since no time")
        snapshot = take_snapshot(layout, read_contents(layout), signature())
        require(snapshot.partial and snapshot.torchinductor.partial_info, "the snapshot does not know of it")
        to_json(snapshot)
        info = found[slug, stage]
        return "told" if info.owner_pid is not None and info.owner else "damaged"

    return Target("marker", path.read_bytes(), read, "told", every_value=1)


def holder_target(folder: Path) -> Target:
    """The name in a lock file is for people, and what it holds keeps nobody out."""
    layout = Layout(folder / "profiles", folder / "telemetry")
    layout.store_lock.parent.mkdir(parents=True)
    path = layout.store_lock
    good = Holder(host="host-1", pid=7, run_id="run-1", since=MOMENT).model_dump_json().encode()

    def read(data: bytes) -> str:
        path.write_bytes(data)
        holder = read_holder(path)
        words = f"{holder} for {holder.held_for():.0f} s" if holder else ""
        require(not is_held(path), "held by its content")
        with acquire([path], "run-2", 0, lambda *_: None, lambda: False):
            require(str(read_holder(path)).endswith("(run run-2)"), "its holder did not sign")
        return "told" if words else "unknown"

    return Target("holder of a lock", good, read, "told", every_value=1)


def epoch_targets(folder: Path) -> list[Target]:
    """Never another one than was there, unless it is refused. One of an earlier version has nothing to prove it."""
    layout = Layout(folder / "profiles", folder / "telemetry")
    layout.profiles.mkdir(parents=True)
    advance_epoch(layout, "key", 1717)
    path = layout.epochs / "key"

    def read(data: bytes) -> str:
        path.write_bytes(data)
        found = highest_epoch(layout, "key")
        require(found == 1717, f"epoch {found} in place of 1717")
        return "known"

    def read_earlier(data: bytes) -> str:
        path.write_bytes(data)
        found = highest_epoch(layout, "key")
        require(found is not None and found >= 0, f"no epoch, but {found}")
        return "known" if found == 1717 else "another"

    return [
        Target("epoch", path.read_bytes(), read, "known"),
        Target("epoch of an earlier version", b"1717\n", read_earlier, "known", 0.3),
    ]


def store_id_target(folder: Path) -> Target:
    """Never another nonce than was there."""
    layout = Layout(folder / "profiles", folder / "telemetry")
    layout.profiles.mkdir(parents=True)
    good = store_id(layout)

    def read(data: bytes) -> str:
        layout.store_id.write_bytes(data)
        found = store_id(layout)
        require(found == good, f"store {found} in place of {good}")
        return "known"

    return Target("store id", layout.store_id.read_bytes(), read, "known", 0.6)


def store_targets(folder: Path) -> list[Target]:
    """All of a profiles root."""
    return [
        *completion_targets(folder / "completions"),
        marker_target(folder / "marker"),
        holder_target(folder / "holder"),
        *epoch_targets(folder / "epoch"),
        store_id_target(folder / "store-id"),
    ]
