"""The outcome of one run on one host: the seed contract's `prep_result.json`."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rayprep.base.errors import ErrorType
from rayprep.base.records import Located, Record, Utc, Utf8
from rayprep.base.sealed import Sealed
from rayprep.model.process_end import Cleanup
from rayprep.model.proof import VerifyResult
from rayprep.model.signature import Signature
from rayprep.model.slices import Asked
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.model.stages import StageName, StageStatus, exit_code
from rayprep.model.telemetry import TelemetryProbe
from rayprep.model.tuning import RefusedEntry, Tuning


class RunStatus(StrEnum):
    """`partial` also while the run goes on, and when it was interrupted."""

    OK = "ok"
    ERROR = "error"
    PARTIAL = "partial"


class Tally(Record):
    count: int
    bytes: int


class Artifacts(Record):
    """What a stage made. Fields that do not apply to a stage are left out of its JSON."""

    cache_dir: Located | None = None
    workspace_dir: Located | None = None
    config_file: Located | None = None
    config_hash: str | None = None
    """`sha256:...`"""
    triton_version: str | None = None
    active_config_link: Located | None = None
    verified_in_log: bool | None = None
    """A server's log says that it uses the config file."""
    verify_log: Located | None = None
    tuning: Tuning | None = None
    refused: tuple[RefusedEntry, ...] | None = None
    """Entries that no server could have launched; none of them is in the file."""
    log_file: Located | None = None
    cubins: Tally | None = None
    files: Tally | None = None
    units: tuple[str, ...] = ()
    """What the stage's completion covers now."""
    built: tuple[str, ...] = ()
    """What of it this run compiled anew."""
    missed: tuple[str, ...] | None = None
    """What a server asked for and the plan did not have; the completion has it now."""
    disk_delta_bytes: int = 0
    files_delta: int = 0
    completion: Located | None = None

    @model_serializer(mode="wrap")
    def _leave_out_what_does_not_apply(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = handler(self)
        return {name: value for name, value in written.items() if value is not None}


class ServerRecord(Record):
    """The warm-up server of a stage, as it was started."""

    warmup_pid: int
    port: int
    mem_fraction: float
    attempts: int
    load_format: str
    ready_s: float
    command: tuple[str, ...]


class Headroom(Record):
    """Disk asked for before the stage wrote, how that was reckoned, and what was free."""

    required_bytes: int
    free_bytes: int
    estimate: str


class StageErrorRecord(Record):
    """One failure, for people and for tools."""

    error_type: ErrorType
    message: str
    hint: str = ""
    required_bytes: int | None = None
    free_bytes: int | None = None
    log_tail: tuple[str, ...] = ()


class StageResult(Record):
    """How one stage went. `status_code` is 0, or the stage's own code when it failed."""

    ran: bool
    status: StageStatus
    status_code: int
    duration_s: float = 0.0
    reason: str | None = None
    detail: str | None = None
    signature: Signature | None = None
    """The signature that a `noop` was decided on."""
    artifacts: Artifacts | None = None
    env: dict[str, str] | None = None
    """The variables that this stage set differently from `run.settings.env`."""
    headroom: Headroom | None = None
    cleanup: Cleanup | None = None
    warmup_pid: int | None = None
    server: ServerRecord | None = None
    verified_in_log: bool | None = None
    """As in the artifacts; of `moe_tune` only."""
    error_type: ErrorType | None = None
    warnings: tuple[str, ...] = ()
    errors: tuple[StageErrorRecord, ...] = ()


class MoeSettings(Record):
    strategy: str
    dtype: str | None = None
    batch_sizes: tuple[int, ...] = ()
    """As asked for; empty for the tuner's own."""
    tuner_script: str | None = None


class Settings(Record):
    """The resolved request, echoed."""

    source: str
    spec_version: str
    model: str
    model_source: str
    config_digest: str
    tp: int
    ops: dict[StageName, str]
    blocks: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    max_seq_len: int | None
    moe: MoeSettings
    device: str
    server_args: tuple[str, ...]
    timeout_s: float
    heartbeat_s: float
    warmup_port: int
    mem_fraction: float
    load_format: str = "dummy"
    deep_gemm_via: str = "kernels"
    slices: Asked = 1
    verify: bool = True
    otlp_endpoint: str | None = None
    server_command: tuple[str, ...] = ()
    write_mode: str = "atomic"
    env: dict[str, str]
    ignored_spec_keys: tuple[str, ...] = ()
    sources: dict[str, str]


class RunBlock(Record):
    """Which run this was, on what."""

    run_id: str
    invocation: str = ""
    """Tells two runs of one id apart."""
    model_slug: str
    tp: int
    device_name: str
    cuda: str | None
    torch_version: str | None
    triton_version: str | None
    sglang_commit: str | None
    sglang_version: str | None
    host: str
    rayprep_version: str
    started_at: Utc
    finished_at: Utc | None = None
    duration_s: float = 0.0
    signature: Signature
    settings: Settings
    session_log: Located


class RunError(Record):
    """A failure in the top-level list. `stage` is null for one before any stage."""

    stage: StageName | None
    error_type: ErrorType
    message: str


class Received(Record):
    """What this host took from another before its own work."""

    source: Utf8
    stages: tuple[StageName, ...]
    files: int
    bytes: int
    duration_s: float


class NodeBlock(Record):
    """Who the host is in its fleet."""

    host: Utf8
    node_id: str
    """Ray's."""
    address: str
    group: str | None = None
    """Of hosts whose artifacts are interchangeable."""
    store: str | None = None
    """The nonce of the profiles root; hosts that share it have one."""
    received: tuple[Received, ...] = ()


class PrepResult(Sealed):
    """The whole file."""

    schema_version: str = "1"
    status: RunStatus
    run: RunBlock
    stages: dict[StageName, StageResult] = Field(default_factory=dict)
    verify: VerifyResult | None = None
    """The proof on a server of its own; null while it has not been reached."""
    telemetry_probe: TelemetryProbe
    errors: tuple[RunError, ...] = ()
    warnings: tuple[str, ...] = ()
    node: NodeBlock | None = None
    """In a fleet, who this host is and what it received; null on a single host."""
    snapshot_before: ProfileSnapshot | None = None
    """What lay in the caches before the work; null where there was none to do."""
    waited_s: float = 0.0
    """For locks, and in a fleet for leases, that other runs held."""
    heartbeats: dict[str, int] = Field(default_factory=dict)
    """How many signs of life each stage gave, and `verify`."""

    @property
    def exit_code(self) -> int:
        """0, a stage's code, 4 for a lock before any stage, 130 for an interrupt, 1 for our own fault, else 3."""
        kinds = [error.error_type for error in self.errors]
        if ErrorType.INTERRUPTED in kinds:
            return 130
        failed = [name for name, stage in self.stages.items() if stage.status is StageStatus.ERROR]
        if self.verify and self.verify.status == "error":
            failed.append(StageName.SERVE)
        if failed:
            return exit_code(failed)
        if ErrorType.LOCK_TIMEOUT in kinds:
            return 4
        if ErrorType.INTERNAL_ERROR in kinds:
            return 1
        return 3 if self.errors else 0

    @property
    def withdrawn_stages(self) -> tuple[StageName, ...]:
        """Whose completion the proof took away."""
        failed = self.verify is not None and self.verify.error_type is ErrorType.VERIFY_FAILED
        return (StageName.SERVE,) if failed else ()

    @property
    def good_stages(self) -> tuple[StageName, ...]:
        """Those that were built or found good here, and still are."""
        fine = (StageStatus.OK, StageStatus.NOOP)
        return tuple(
            name for name, stage in self.stages.items() if stage.status in fine and name not in self.withdrawn_stages
        )

    @property
    def status_line(self) -> str:
        """`ok deep_gemm:noop moe_tune:ok ...`, what RESULT_STATUS says."""
        stages = [f"{name}:{stage.status}" for name, stage in self.stages.items()]
        return " ".join([self.status, *stages, *([f"verify:{self.verify.status}"] if self.verify else [])])


def overall_status(stages: Mapping[StageName, StageResult], errors: Iterable[RunError], finished: bool) -> RunStatus:
    """`ok` when every stage is ok, noop or skipped; `error` when all that ran failed; `partial` otherwise."""
    errors = tuple(errors)
    if not finished or any(error.error_type is ErrorType.INTERRUPTED for error in errors):
        return RunStatus.PARTIAL
    failed = [stage for stage in stages.values() if stage.status is StageStatus.ERROR]
    # A noop has not run, so it does not make a run of failures a partial one.
    good = [stage for stage in stages.values() if stage.status is StageStatus.OK]
    if not failed and not errors:
        return RunStatus.OK
    return RunStatus.PARTIAL if good else RunStatus.ERROR
