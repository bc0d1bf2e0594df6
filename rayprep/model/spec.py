"""The request: what to prepare, resolved once from flags, spec file and defaults."""

import os.path
from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field, ValidationError, field_validator

from rayprep.base.errors import BadRequest
from rayprep.base.otlp import OtlpEndpoint, parse_endpoint
from rayprep.base.records import Record, Word, first_problem
from rayprep.model.slices import ALL, Asked
from rayprep.model.stages import StageName
from rayprep.sglang.architecture import Architecture
from rayprep.sglang.command import address_of, refuse_tls, request_of
from rayprep.sglang.flags import check_server_args

SPEC_VERSION = "1"
DEFAULT_BATCH_SIZES = (1, 8)
"""Decode batch sizes that are prepared when none is asked for."""
DEFAULT_SEQ_LEN = 512
"""Tokens of KV cache that the CPU decode step is compiled for when --max-seq-len is not given."""


class StageOp(StrEnum):
    """`ensure` builds what is missing, `rebuild` builds in any case, `skip` leaves the stage out."""

    ENSURE = "ensure"
    REBUILD = "rebuild"
    SKIP = "skip"


class MoeStrategy(StrEnum):
    """How far the MoE tuner searches."""

    AUTO = "auto"
    FIXED = "fixed"
    SWEEP = "sweep"


class DeepGemmVia(StrEnum):
    """`kernels` lists the kernels and compiles them side by side; `server` has SGLang compile them as it starts."""

    KERNELS = "kernels"
    SERVER = "server"


class DeviceChoice(StrEnum):
    """`auto` is `cuda` where NVML shows a GPU, else `cpu`."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class PrepSpec(Record):
    """One request, complete."""

    model: Word = Field(min_length=1)
    """A folder with a config.json, that file, or a name in the local Hugging Face cache."""
    tp: int = Field(default=1, ge=1)
    ops: dict[StageName, StageOp] = Field(default_factory=dict)
    """Stages that are not named here are `ensure`."""
    selected: tuple[StageName, ...] = tuple(StageName)
    block_sizes: tuple[int, ...] = ()
    """Must agree with the model's `weight_block_size`; empty means the model's own."""
    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES
    moe_strategy: MoeStrategy = MoeStrategy.AUTO
    moe_dtype: Word | None = None
    moe_batch_sizes: tuple[int, ...] = ()
    """Numbers of tokens that the MoE kernel is tuned for; empty means what decode captures and a prefill chunk."""
    moe_tuner_script: Word | None = None
    """SGLang's own tuner, run in place of ours."""
    max_seq_len: int | None = Field(default=None, gt=0)
    # JSON knows no infinity: one in the request would be a null in its result.
    timeout_s: float = Field(default=3600, gt=0, allow_inf_nan=False)
    """Of each stage, and of the wait for a lock."""
    heartbeat_s: float = Field(default=60, gt=0, allow_inf_nan=False)
    warmup_port: int = Field(default=30999, ge=1024, le=65535)
    mem_fraction: float = Field(default=0.96, gt=0, lt=1)
    device: DeviceChoice = DeviceChoice.AUTO
    server_args: tuple[Word, ...] = ()
    """Handed to SGLang as they are."""
    load_format: Word = "dummy"
    """`dummy` makes weights up, which compiles the same kernels; `auto` loads the model's own."""
    deep_gemm_via: DeepGemmVia = DeepGemmVia.KERNELS
    slices: Asked = 1
    """How many servers of `tp` GPUs each the proof runs at once, on GPUs of their own."""
    verify: bool = True
    """Prove on a server of its own, after all stages, that nothing is left to compile."""
    otlp_endpoint: Word | None = None
    """Where traces go, of rayprep's stages and of its servers; see `rayprep.base.otlp`."""
    server_command: tuple[Word, ...] = ()
    """The campaign's own server command, for that proof; empty means the one that this request implies."""

    @field_validator("slices", mode="before")
    @classmethod
    def _a_number_or_all(cls, value: object) -> object:
        if value == ALL or (str(value).isdecimal() and int(str(value)) > 0):
            return value
        raise ValueError("slices are a number from 1 on, or all")

    @field_validator("batch_sizes", "block_sizes", "moe_batch_sizes")
    @classmethod
    def _positive_and_sorted(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in sizes):
            raise ValueError("sizes must be positive")
        return tuple(sorted(set(sizes)))

    @field_validator("batch_sizes")
    @classmethod
    def _not_empty(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes:
            raise ValueError("at least one batch size is needed")
        return sizes

    @field_validator("otlp_endpoint")
    @classmethod
    def _an_endpoint(cls, text: str | None) -> str | None:
        if text is not None:
            parse_endpoint(text)
        return text

    def op(self, stage: StageName) -> StageOp:
        return self.ops.get(stage, StageOp.ENSURE)

    @property
    def tracing(self) -> OtlpEndpoint | None:
        return parse_endpoint(self.otlp_endpoint) if self.otlp_endpoint else None

    @property
    def seq_len(self) -> int:
        return self.max_seq_len or DEFAULT_SEQ_LEN


class Resolved(Record):
    """A request with where each of its values came from."""

    spec: PrepSpec
    source: str
    """`spec` where a spec file was given and no flag overrode it, else `flags`."""
    sources: dict[str, str]
    """Field -> `flag`, `spec` or `default`."""
    ignored_spec_keys: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def resolve(
    flags: Mapping[str, object],
    from_file: Mapping[str, object] | None = None,
    ignored: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Resolved:
    """Merges flags over spec-file values over defaults. Keys are field names of PrepSpec.

    Raises:
        BadRequest: a value is of the wrong type or out of range, no model is given, or the server command is another
            model's or for another TP.
    """
    spec_values = dict(from_file or {})
    command = flags.get("server_command") or spec_values.get("server_command")
    implied = request_of([str(word) for word in command]) if isinstance(command, list | tuple) else {}
    _refuse_another_server(implied, {**spec_values, **flags})
    merged = {**implied, **spec_values, **flags}
    merged["ops"] = {**_as_ops(spec_values.get("ops")), **_as_ops(flags.get("ops"))}
    if "model" not in merged:
        raise BadRequest("no model given", hint="give --model PATH_OR_NAME, or model_path in the spec file")
    try:
        spec = PrepSpec.model_validate(merged)
    except ValidationError as error:
        raise BadRequest(_problem(error), hint="rayprep ensure --help lists the values") from None
    origin = {
        field: "flag" if field in flags else "spec" if field in spec_values else "default"
        for field in PrepSpec.model_fields
    }
    source = "spec" if from_file is not None and "flag" not in origin.values() else "flags"
    return Resolved(spec=spec, source=source, sources=origin, ignored_spec_keys=ignored, warnings=warnings)


def _refuse_another_server(implied: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Its proof would be kept for a model, or for a layout, that it says nothing of."""
    for name, normal in (("model", _as_place), ("tp", str)):
        said = implied.get(name)
        if said is not None and name in given and normal(said) != normal(given[name]):
            raise BadRequest(
                f"the server command is for {name} {said}, the request for {name} {given[name]}",
                hint=f"give the {name} once: in the server command",
            )


def _as_place(model: object) -> str:
    """However it is written: the folder, seen from here, that holds the config. A hub's name is like nothing else."""
    path = os.path.expanduser(str(model))  # noqa: PTH111 - os.path asks no question that a wild name could break
    return os.path.abspath(path).removesuffix("/config.json")  # noqa: PTH100


def _as_ops(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}


def _problem(error: ValidationError) -> str:
    words = first_problem(error).replace("valid tuple", "list")  # what a tuple is to JSON
    return f"{words}, got {error.errors()[0]['input']!r}"


def check_against_model(spec: PrepSpec, architecture: Architecture) -> None:
    """Refuses a request that this model cannot have.

    Raises:
        BadRequest: TP does not divide the heads, the block size is not the model's, a server argument asks for
            another layout, or the campaign's own server would have no port or speak TLS.
    """
    check_server_args(spec.server_args, spec.tp)
    refuse_tls((*spec.server_args, *spec.server_command))
    if spec.server_command:
        address_of(spec.server_command)
        _refuse_slices(spec.slices)
    heads, kv_heads = architecture.num_attention_heads, architecture.num_key_value_heads
    if heads and heads % spec.tp:
        raise BadRequest(
            f"tp {spec.tp} does not divide the model's {heads} attention heads",
            hint="choose a tp that divides them",
        )
    if kv_heads and kv_heads % spec.tp and spec.tp % kv_heads:
        raise BadRequest(
            f"tp {spec.tp} and the model's {kv_heads} key-value heads do not divide each other",
            hint="choose a tp that divides them, or a multiple of them",
        )
    own = architecture.weight_block_size or ()
    for size in spec.block_sizes:
        if size not in own:
            found = f"weight_block_size {list(own)}" if own else "no weight_block_size (it is not block-quantised)"
            raise BadRequest(
                f"--block-size {size} does not fit the model, which has {found}",
                hint="drop --block-size to take the model's own",
            )


def _refuse_slices(slices: Asked) -> None:
    if slices != 1:
        raise BadRequest(
            f"slices {slices} and a server command exclude each other: the command has one port, and its own GPUs",
            hint="leave one of them out",
        )
