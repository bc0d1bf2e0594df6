"""Whole, valid records that tests change one field of."""

from rayprep.base.errors import ErrorType
from rayprep.base.records import Located
from rayprep.model.completion import Completion, Identity, cache_key
from rayprep.model.fleet.result import FleetRun
from rayprep.model.fleet.spec import FleetSpec
from rayprep.model.result import (
    MoeSettings,
    PrepResult,
    RunBlock,
    RunError,
    Settings,
    StageErrorRecord,
    StageResult,
    overall_status,
)
from rayprep.model.signature import Signature
from rayprep.model.stages import STAGES, StageName, StageStatus
from rayprep.model.telemetry import TelemetryProbe

MOMENT = "2025-10-09T01:12:00Z"
DIGEST = "sha256:" + "0" * 64


def fleet_run(**changes: object) -> FleetRun:
    values: dict[str, object] = {
        "run_id": "run",
        "invocation": "i",
        "model": "m",
        "tp": 1,
        "address": "10.0.0.1:6379",
        "rayprep_version": "0",
        "ray_version": "2",
        "started_at": MOMENT,
        "spec": FleetSpec(),
    }
    return FleetRun.model_validate({**values, **changes})


def signature(**changes: object) -> Signature:
    values: dict[str, object] = {
        "device_name": "NVIDIA GH200 480GB",
        "compute_capability": "sm_90",
        "sm_count": 132,
        "gpu_count": 1,
        "cpu_arch": "aarch64",
        "cpu_isa": "sve2",
        "libc": "glibc 2.39",
        "python": "3.12",
        "cxx": "g++ 13.2.0",
        "driver_version": "580.65.06",
        "cuda": "13.0",
        "nvcc": "13.0.88",
        "torch_version": "2.11.0",
        "triton_version": "3.6.0",
        "transformers_version": "5.12.1",
        "flashinfer_version": "0.6.14",
        "deep_gemm_version": "0.1.4.post1",
        "sglang_version": "0.5.16",
        "install_prefix": "/opt/venv/lib/python3.12/site-packages",
        "profiles_root": "/profiles",
    }
    return Signature.model_validate({**values, **changes})


def identity(**changes: object) -> Identity:
    return Identity.model_validate({"model_slug": "tiny-dense", "config_digest": DIGEST, "tp": 1, **changes})


def completion(stage: StageName = StageName.INDUCTOR, /, **changes: object) -> Completion:
    """A completion under its own key, with two files of 3 and 5 bytes that nobody has written."""
    whose = changes.get("identity", identity())
    made_on = changes.get("signature", signature())
    assert isinstance(whose, Identity)
    assert isinstance(made_on, Signature)
    values: dict[str, object] = {
        "stage": stage,
        "key": cache_key(stage, whose, made_on),
        "identity": whose,
        "model_source": "/models/tiny-dense/config.json",
        "signature": made_on,
        "units": ("bs1", "bs8"),
        "artifacts": {"torchinductor/ab/cab.so": (3, DIGEST), "torchinductor/fxgraph/zz/key/graph": (5, DIGEST)},
        "started_at": MOMENT,
        "finished_at": MOMENT,
        "duration_s": 10.0,
        "run_id": "run-1",
        "rayprep_version": "0.1.0",
    }
    return Completion.model_validate({**values, **changes})


def stage_result(
    status: StageStatus, stage: StageName, error_type: ErrorType = ErrorType.COMPILE_FAILED
) -> StageResult:
    """A result of `status`; a failed one carries `error_type` and the stage's code."""
    if status is not StageStatus.ERROR:
        return StageResult(ran=status is StageStatus.OK, status=status, status_code=0)
    return StageResult(
        ran=True,
        status=status,
        status_code=STAGES[stage].code,
        error_type=error_type,
        errors=(StageErrorRecord(error_type=error_type, message=f"{stage} failed"),),
    )


def prep_result(statuses: dict[StageName, StageStatus], errors: tuple[RunError, ...] = ()) -> PrepResult:
    """A finished run whose stages ended with `statuses`; `errors` are those of the run as a whole."""
    stages = {stage: stage_result(status, stage) for stage, status in statuses.items()}
    own = tuple(
        RunError(stage=stage, error_type=error.error_type, message=error.message)
        for stage, result in stages.items()
        for error in result.errors
    )
    return PrepResult(
        status=overall_status(stages, (*own, *errors), finished=True),
        run=_run_block(),
        stages=stages,
        telemetry_probe=TelemetryProbe(with_run_filter='increase(x{container_run="run-1"}[30s])'),
        errors=(*own, *errors),
    )


def _run_block() -> RunBlock:
    return RunBlock(
        run_id="run-1",
        model_slug="tiny-dense",
        tp=1,
        device_name="cpu",
        cuda=None,
        torch_version="2.11.0",
        triton_version=None,
        sglang_commit=None,
        sglang_version=None,
        host="host-1",
        rayprep_version="0.1.0",
        started_at=MOMENT,
        finished_at=MOMENT,
        duration_s=1243,
        signature=signature(model_slug="tiny-dense", tp_size=1),
        settings=Settings(
            source="flags",
            spec_version="1",
            model="tiny-dense",
            model_source="/models/tiny-dense/config.json",
            config_digest=DIGEST,
            tp=1,
            ops=dict.fromkeys(StageName, "ensure"),
            blocks=(128,),
            batch_sizes=(1, 8),
            max_seq_len=None,
            moe=MoeSettings(strategy="auto"),
            device="cpu",
            server_args=(),
            timeout_s=3600,
            heartbeat_s=60,
            warmup_port=30999,
            mem_fraction=0.96,
            env={"TRITON_CACHE_DIR": "/profiles/triton"},
            sources={"tp": "default"},
        ),
        session_log=Located(container_path="/telemetry/logs/run-1.log", host_path="/telemetry/logs/run-1.log"),
    )
