"""The container run's manifest, and the pointer that leads to it.

A run of the container writes both when it starts. Rayprep and other programs add to the manifest later, each to fields
of its own, so all writing but the first goes through `merged`, which leaves everything else as it was.
"""

import json
import shlex
from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from rayprep.base.errors import BadRequest, ErrorType
from rayprep.base.records import Located, Record, Utc, encodable
from rayprep.model.signature import Signature
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.model.stages import StageStatus

MANIFEST_NAME = "container_run_meta.json"
POINTER_NAME = "container_run_meta.env"
POINTER = "CONTAINER_RUN_META_JSON"
"""In the pointer: the manifest's path inside the container."""
POINTER_ON_HOST = "CONTAINER_RUN_META_JSON_HOST"
LONGEST_POINTER = 1 << 16
"""Bytes of the file: two paths, each letter of which may be quoted. `shlex` takes minutes for a word of megabytes."""


class SurfaceStatus(StrEnum):
    """`expected` comes to life with the benchmark's own server. `degraded` and `absent` carry a warning."""

    LIVE = "live"
    EXPECTED = "expected"
    DEGRADED = "degraded"
    ABSENT = "absent"


class Surface(Record):
    """Where telemetry comes from, and whether it does."""

    status: SurfaceStatus
    warning: str | None = None


class Service(Record):
    """Where a service is reached from the container and from its host, which share a network."""

    url: str
    port: int


class Optimization(Record):
    """How a stage went that an `ensure` in this container has run or judged last.

    While it builds, `status` is `error` and `reason` is `in_progress_or_aborted`.
    """

    status: StageStatus
    reason: str | None = None
    """Why it had nothing to do, or is not done."""
    duration_s: float
    size_delta_bytes: int | None = None
    """Null where the stage did not run."""
    error_type: ErrorType | None = None
    model_slug: str
    tp_size: int
    finished_at: Utc


class ProfileCache(Record):
    """`start` is null until the snapshot has been taken."""

    start: ProfileSnapshot | None = None


class Manifest(Record):
    """The whole file. Other programs add fields of their own, which readers ignore."""

    schema_version: str = "1"
    run_id: str
    started_at: Utc
    stopped_at: Utc | None = None
    """Null while the container runs; also where it was killed and could not say so."""
    manifest: Located
    session_log: Located
    prep_result: Located
    """Where a `rayprep ensure` in the container writes its result; there is none before."""
    telemetry_root: Located
    profiles_root: Located
    host_home: str | None = None
    """The home folder of the host's user, which the snapshot's paths are relative to."""
    port_base: int = 0
    """Added to every port."""
    signature: Signature
    """The container's versions and GPUs: the host may have neither torch nor SGLang."""
    services: dict[str, Service]
    telemetry_surfaces: dict[str, Surface]
    warnings: tuple[str, ...] = ()
    profile_cache: ProfileCache = ProfileCache()
    optimizations: dict[str, Optimization] = Field(default_factory=dict)
    resets: dict[str, Utc] = Field(default_factory=dict)
    """Stage -> when a `reset` in this container last took something from what it had built, or was about to."""


PORTS = {
    "prometheus": 9090,
    "jaeger": 16686,
    "otlp_grpc": 4317,
    "otlp_http": 4318,
    "node_exporter": 9100,
    "dcgm_exporter": 9400,
    "sglang": 30000,
    "router": 29000,
}
"""The contract's; `init-run.sh` starts its programs on the same ones."""
PROGRAMS = ("prometheus", "jaeger", "node_exporter", "dcgm_exporter")
"""What the container itself runs; each is a surface."""
_KEPT_BY = {"sglang_metrics": "prometheus", "tracing": "jaeger"}
"""What the benchmark's server sends, and the program that keeps it."""


def services(port_base: int) -> dict[str, Service]:
    """Every service with its ports shifted by `port_base`."""
    shifted = {name: port + port_base for name, port in PORTS.items()}
    return {name: Service(url=f"http://127.0.0.1:{port}", port=port) for name, port in shifted.items()}


def surfaces(programs: Mapping[str, Surface]) -> dict[str, Surface]:
    """Every surface of a container whose programs were found like this."""
    missing = Surface(status=SurfaceStatus.ABSENT, warning="it was not started")
    return _with_dependents({name: programs.get(name, missing) for name in PROGRAMS})


def _with_dependents(programs: Mapping[str, Surface]) -> dict[str, Surface]:
    kept = {name: _kept(by, programs[by]) for name, by in _KEPT_BY.items() if by in programs}
    return {**programs, **kept}


def _kept(keeper: str, surface: Surface) -> Surface:
    if surface.status is SurfaceStatus.LIVE:
        return Surface(status=SurfaceStatus.EXPECTED)
    return Surface(status=surface.status, warning=f"{keeper}, which would keep it, is {surface.status}")


def warnings_of(found: Mapping[str, Surface]) -> tuple[str, ...]:
    """One line for each surface that has a warning."""
    return tuple(f"{name}: {surface.warning}" for name, surface in found.items() if surface.warning)


def parse_program(text: str) -> tuple[str, Surface]:
    """`NAME=STATUS`, or `NAME=STATUS:WARNING`. Raises BadRequest for anything else."""
    name, _, rest = text.partition("=")
    status, _, warning = rest.partition(":")
    allowed = {each.value for each in SurfaceStatus} - {SurfaceStatus.EXPECTED.value}
    if name not in PROGRAMS or status not in allowed or (status != SurfaceStatus.LIVE and not warning):
        raise BadRequest(
            f"--program {text!r} is not NAME=STATUS:WARNING",
            hint=f"NAME is one of {', '.join(PROGRAMS)}; STATUS is live, or degraded or absent with a warning",
        )
    return name, Surface(status=SurfaceStatus(status), warning=encodable(warning) or None)


def pointer_text(manifest: Located) -> str:
    """`NAME=value` lines that a shell can source: a value with a space is quoted."""
    return f"{POINTER}={shlex.quote(manifest.container_path)}\n{POINTER_ON_HOST}={shlex.quote(manifest.host_path)}\n"


def parse_pointer(text: str) -> dict[str, str]:
    """The pointer's variables. A line that is none of `NAME=value` is left out, as is one half written."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        try:
            words = shlex.split(value)
        except ValueError:  # a quotation that does not end
            continue
        if equals and len(words) == 1:
            found[name] = words[0]
    return found


def has_snapshot(text: str) -> bool:
    """Whether `profile_cache.start` is there. A text that is no manifest has none, and `merged` says what is wrong."""
    try:
        return json.loads(text)["profile_cache"]["start"] is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def merge_snapshot(text: str, source: str, snapshot: ProfileSnapshot) -> str:
    """The manifest's text with `profile_cache.start` set. See `merged`."""
    return merged(text, source, {("profile_cache", "start"): snapshot.model_dump(mode="json")})


def merged(text: str, source: str, changes: Mapping[tuple[str, ...], object]) -> str:
    """The manifest's text with `changes`, path -> value, made; every other field stays as it is, in its order.

    Raises:
        BadRequest: the text is not a JSON object, or something on the way to a field is not one.
    """
    try:
        document = json.loads(text)
        for path, value in changes.items():
            _set(document, source, path, value)
        written = json.dumps(document, indent=2, ensure_ascii=False)
        if written != encodable(written):  # half a surrogate pair, which only an escape can hold
            written = json.dumps(document, indent=2)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"manifest {source} is not JSON: {error}", hint="it is left as it was") from None
    return written + "\n"


def _set(document: object, source: str, path: tuple[str, ...], value: object) -> None:
    *above, last = path
    inner = document
    for name in above:
        inner = inner.setdefault(name, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        where = f"it and its {'.'.join(above)} must be JSON objects" if above else "it must be a JSON object"
        raise BadRequest(f"manifest {source}: {where}", hint="it is left as it was")
    inner[last] = value


def with_programs(text: str, source: str, programs: Mapping[str, Surface], stopped_at: str | None = None) -> str:
    """The manifest's text after programs were found in another state, or the container has stopped. See `merged`."""
    found = _with_dependents(programs)
    changes: dict[tuple[str, ...], object] = {("stopped_at",): stopped_at} if stopped_at else {}
    for name, surface in found.items():
        changes["telemetry_surfaces", name] = surface.model_dump(mode="json")
    text = merged(text, source, changes)
    document = json.loads(text)
    if not isinstance(document, dict):
        raise BadRequest(f"manifest {source}: it must be a JSON object", hint="it is left as it was")
    said = document.get("warnings", [])
    new = [line for line in warnings_of(found) if line not in said] if isinstance(said, list) else []
    return merged(text, source, {("warnings",): [*said, *new]}) if new else text
