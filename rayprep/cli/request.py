"""Flags to a request, or to those of a campaign: the spec file under them, the roots, the runs' ids."""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rayprep.base.errors import BadRequest
from rayprep.cli.stage_names import stage_named
from rayprep.host.files import read_text
from rayprep.host.layout import Layout, choose_roots
from rayprep.model.campaign import run_ids
from rayprep.model.spec import PrepSpec, Resolved, StageOp, resolve
from rayprep.model.spec_file import SpecFile, parse_spec_file
from rayprep.model.stages import StageName
from rayprep.node.request import NodeRequest

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass
class Flags:
    """What was given on the command line; null or empty where nothing was."""

    model: str | None = None
    tp: int | None = None
    selected: tuple[StageName, ...] = ()
    rebuild: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)
    block_sizes: list[int] | None = None
    batch_sizes: list[int] | None = None
    moe_strategy: str | None = None
    moe_dtype: str | None = None
    moe_batch_sizes: list[int] | None = None
    moe_tuner_script: Path | None = None
    max_seq_len: int | None = None
    timeout_s: float | None = None
    heartbeat_s: float | None = None
    warmup_port: int | None = None
    mem_fraction: float | None = None
    device: str | None = None
    server_args: list[str] | None = None
    load_format: str | None = None
    slices: str | None = None
    deep_gemm_via: str | None = None
    verify: bool | None = None
    otlp_endpoint: str | None = None
    verify_only: bool = False
    server_command: list[str] | None = None
    spec_file: Path | None = None
    profiles_root: str | None = None
    telemetry_root: str | None = None
    run_id: str | None = None
    deep: bool = False

    _PLAIN = (
        *("model", "tp", "block_sizes", "batch_sizes", "moe_strategy", "moe_dtype", "max_seq_len"),
        "moe_batch_sizes",
        *("timeout_s", "heartbeat_s", "warmup_port", "mem_fraction", "device"),
        *("load_format", "slices", "deep_gemm_via", "verify", "otlp_endpoint"),
    )

    def values(self) -> dict[str, object]:
        """Only what was given, keyed by PrepSpec's fields."""
        given = {name: getattr(self, name) for name in self._PLAIN if getattr(self, name) is not None}
        if self.selected:
            given["selected"] = self.selected
        if self.moe_tuner_script:
            given["moe_tuner_script"] = str(self.moe_tuner_script.absolute())
        if self.server_command:
            given["server_command"] = tuple(self.server_command)
        if self.server_args:
            given["server_args"] = [word for each in self.server_args for word in shlex.split(each)]
        ops = self._ops()
        return {**given, "ops": ops} if ops else given

    def _ops(self) -> dict[StageName, StageOp]:
        """Raises BadRequest where a stage is both asked for and left out, by --skip or by the flags for others."""
        rebuilt, skipped = ({stage_named(name) for name in names} for names in (self.rebuild, self.skip))
        chosen = set(self.selected) if set(self.selected) != set(StageName) else set()  # --all names none
        for stage in StageName:
            if stage in skipped & (rebuilt | chosen):
                asked = "--rebuild" if stage in rebuilt else "the flag for"
                raise BadRequest(f"{asked} {stage} and --skip {stage} exclude each other", hint="leave one of them out")
        for stage in sorted(rebuilt - chosen) if chosen else ():
            others = " and ".join(sorted(chosen))
            raise BadRequest(
                f"--rebuild {stage} does nothing beside the flag for {others}: no other stage runs",
                hint=f"give {stage}'s own flag too, or none",
            )
        return dict.fromkeys(rebuilt, StageOp.REBUILD) | dict.fromkeys(skipped, StageOp.SKIP)


def proof_scope(verify: str | None, *, no_verify: bool) -> str | None:
    """Which hosts prove: `all`, `canary` or `none`; null where the user did not say. Raises BadRequest."""
    if verify not in (None, "all", "canary", "none"):
        raise BadRequest(f"--verify {verify!r}", hint="it is all, canary or none")
    return "none" if no_verify else verify


def resolve_flags(flags: Flags, file: SpecFile | None = None) -> Resolved:
    """Raises BadRequest for anything wrong in flags or spec file."""
    if file is None:
        return resolve(flags.values())
    return resolve(flags.values(), file.values, file.ignored, file.warnings)


def read_spec_file(path: Path) -> SpecFile:
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadRequest(f"spec file {path} cannot be read: {why}", hint="give another --spec-file") from None
    return parse_spec_file(text, str(path))


@dataclass(frozen=True)
class Requests:
    """What is asked for: one request, or those of a campaign. All have the same roots."""

    each: tuple[NodeRequest, ...]
    campaign: bool


def node_requests(flags: Flags, environ: Mapping[str, str]) -> Requests:
    """All that is asked for, on this host. The flags apply to each request of a campaign.

    Raises:
        BadRequest: also for what is wrong in the last request of a campaign, before the first begins.
    """
    file = read_spec_file(flags.spec_file) if flags.spec_file else None
    roots = choose_roots(environ, flags.profiles_root, flags.telemetry_root)
    run_id = flags.run_id or default_run_id(roots, "rayprep")
    if file is None or not file.campaign:
        return Requests((_node_request(flags, file, run_id, environ),), campaign=False)
    found = []
    for number, name in enumerate(run_ids(run_id, len(file.campaign)), 1):
        try:
            found.append(_node_request(flags, file.campaign[number - 1], name, environ))
        except BadRequest as error:
            raise BadRequest(f"request {number} of the campaign: {error.message}", hint=error.hint) from None
    return Requests(tuple(found), campaign=True)


def _node_request(flags: Flags, file: SpecFile | None, run_id: str, environ: Mapping[str, str]) -> NodeRequest:
    resolved = resolve_flags(flags, file)
    roots = choose_roots(environ, flags.profiles_root, flags.telemetry_root)
    container = roots.container_run
    if not RUN_ID.fullmatch(run_id):
        raise BadRequest(f"run id {run_id!r} cannot be a folder's name", hint="use letters, digits, '.', '_' and '-'")
    spec = _with_absolute_program(_with_absolute_model(resolved.spec), environ)
    if container and resolved.sources["warmup_port"] == "default":
        spec = spec.model_copy(update={"warmup_port": spec.warmup_port + container.port_base})
    return NodeRequest(
        resolved=resolved.model_copy(update={"spec": spec}),
        run_id=run_id,
        profiles_root=str(roots.profiles),
        telemetry_root=str(roots.telemetry),
        folder=_where_the_user_stands(),
        deep=flags.deep,
        verify_only=flags.verify_only,
    )


def _where_the_user_stands() -> str | None:
    """The current folder; none where it has been removed."""
    with contextlib.suppress(OSError):
        return str(Path.cwd())
    return None


def _with_absolute_model(spec: PrepSpec) -> PrepSpec:
    """The agent runs in another folder than the user."""
    path = os.path.expanduser(spec.model)  # noqa: PTH111 - os.path asks no question that a wild name could break
    return spec.model_copy(update={"model": os.path.abspath(path)}) if os.path.exists(path) else spec  # noqa: PTH100, PTH110


def _with_absolute_program(spec: PrepSpec, environ: Mapping[str, str]) -> PrepSpec:
    """Of the campaign's own server: looked up where the user stands, and before anything is done."""
    if not spec.server_command:
        return spec
    program, *words = spec.server_command
    found = shutil.which(program, path=environ.get("PATH"))
    if found is None:
        why = f"the server command's program {program!r} is not there, or cannot be run"
        raise BadRequest(why, hint="give its path, or put it on PATH")
    return spec.model_copy(update={"server_command": (os.path.abspath(found), *words)})  # noqa: PTH100 - keeps links


def default_run_id(layout: Layout, prefix: str) -> str:
    """That of the container run that this is in, whose log and folder are meant then; else a new one."""
    return layout.container_run.run_id if layout.container_run else new_run_id(prefix)


def new_run_id(prefix: str) -> str:
    """`<prefix>-20261009T011200Z-1a2b`."""
    return f"{prefix}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
