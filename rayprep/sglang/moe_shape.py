"""Which fused MoE kernel SGLang runs for a model, and for which numbers of tokens it is worth tuning.

Read in sglang 0.5.16: `srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py` (what a config file's name is
made of), `srt/layers/quantization/{fp8,unquant}.py` and `compressed_tensors/schemes/compressed_tensors_w8a8_fp8_moe.py`
(which layers go to the Triton runner), and `srt/models` (how many experts a layer has).
"""

import re

from pydantic import Field

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record
from rayprep.sglang.architecture import Architecture, Quantization
from rayprep.sglang.experts import FAMILIES, fused_shared_experts
from rayprep.sglang.flags import ServerFlags
from rayprep.sglang.gemm_shapes import DEFAULT_CHUNKED_PREFILL, chunked_prefill_size
from rayprep.sglang.inventory import ExpertFacts, Inventory

FP8 = "fp8_w8a8"
DECODE_MAX_BATCH = 256
"""The largest batch that SGLang captures decode graphs for, by default, on a GPU with 60 to 160 GB of memory."""
_OTHER_KERNELS = re.compile(r"awq|gptq|mxfp4|mxfp8|modelopt|nvfp4|petit|bitsandbytes|w4afp8")
"""Quantisations whose experts SGLang runs through Marlin, CUTLASS or FlashInfer, on Hopper."""
MODELOPT_FP8 = "modelopt_fp8"
"""One scale a matrix. Source: `ModelOptFp8MoEMethod` in `srt/layers/quantization/modelopt_quant.py`."""
_TYPES = ("bfloat16", "float16")
_DECODE_FLAGS = ("cuda_graph_max_bs_decode", "cuda_graph_max_bs")


class MoeShape(Record):
    """One rank's fused MoE layer, as far as it decides the kernel. Widths in elements."""

    experts: int = Field(gt=0)
    """E, with a shared expert that runs as one more routed one."""
    width: int = Field(gt=0)
    """N, of each expert's middle."""
    hidden: int = Field(gt=0)
    """K."""
    top_k: int = Field(gt=0)
    """Experts of each token, the shared ones included."""
    shared: int = Field(default=0, ge=0)
    """How many of them are shared, so that every token goes to them; they are the last of the experts."""
    dtype: str | None = None
    """As the config file's name says it; None for experts in bfloat16 or float16."""
    block: tuple[int, int] | None = None
    """Rows and columns of one scaling block of the weights."""
    per_channel: bool = False
    activation: str = "bfloat16"
    """The type of the hidden states, by torch's name."""

    def __str__(self) -> str:
        words = [f"E={self.experts} N={self.width} K={self.hidden} topk={self.top_k}", self.dtype or self.activation]
        words += [f"{self.block[0]}x{self.block[1]}"] if self.block else []
        return " ".join([*words, *(["per_channel"] if self.per_channel else [])])


class NoTritonKernel(Record):
    """A server of this model runs no Triton MoE kernel that reads a config, or none at all."""

    reason: str
    detail: str


class UnknownKernel(Record):
    """A model with experts whose kernel is not known here."""

    message: str
    """What is not known."""


MoeKernel = MoeShape | NoTritonKernel | UnknownKernel

_PLAIN = ("UnquantizedFusedMoEMethod",)
_FP8 = ("Fp8MoEMethod", "ModelOptFp8MoEMethod", "CompressedTensorsW8A8Fp8MoE", "CompressedTensorsW8A8Fp8MoEMethod")
"""SGLang's classes of experts that its Triton kernel multiplies in FP8, whatever type the weights have in the file."""


def listed_moe_shape(inventory: Inventory, server_args: tuple[str, ...], asked_dtype: str | None = None) -> MoeKernel:
    """What one rank runs through SGLang's Triton MoE kernel by what the installed SGLang says.

    Raises:
        BadRequest: the model's kernel is of another type than `asked_dtype`.
    """
    if nothing := _reads_no_config(ServerFlags(server_args)):
        return nothing
    if not inventory.experts:
        return NoTritonKernel(reason="dense_model", detail="it has no experts")
    kernels = {_listed_kernel(experts, inventory.dtype) for experts in inventory.experts}
    shapes = {kernel for kernel in kernels if isinstance(kernel, MoeShape)}
    if len(shapes) > 1:
        return UnknownKernel(message=f"its layers have experts of unlike shapes: {', '.join(sorted(map(str, shapes)))}")
    kernel = min(shapes or kernels, key=str)
    if isinstance(kernel, MoeShape):
        _refuse_other_type(kernel, asked_dtype)
    return kernel


def _listed_kernel(experts: ExpertFacts, dtype: str) -> MoeKernel:
    method = experts.scheme or experts.method
    if experts.runner != "triton":
        detail = f"SGLang runs {method} experts with {experts.runner or 'a kernel of their own'}"
        return NoTritonKernel(reason="no_triton_moe", detail=detail)
    if method not in (*_PLAIN, *_FP8):
        return UnknownKernel(message=f"the MoE kernel of {method} experts")
    if not experts.gated or experts.activation != "silu":
        what = f"experts with {experts.activation}" if experts.gated else "experts without a gate"
        return UnknownKernel(message=f"the MoE kernel of {what}")
    up, down = experts.weights.get("w13_weight", ()), experts.weights.get("w2_weight", ())
    if len(up) != 3 or len(down) != 3 or up[1] != 2 * down[2] or dtype not in _TYPES:
        return UnknownKernel(message=f"the MoE kernel of {method} weights {list(up)} and {list(down)} in {dtype}")
    scale = experts.weights.get("w13_weight_scale", ())
    fp8 = method in _FP8
    return MoeShape(
        experts=down[0],
        width=down[2],
        hidden=up[2],
        top_k=experts.top_k,
        shared=experts.shared,
        dtype=FP8 if fp8 else None,
        block=(experts.block[0], experts.block[1]) if fp8 and experts.block and len(experts.block) == 2 else None,
        per_channel=fp8 and scale[1:] == (up[1], 1),
        activation=dtype,
    )


def moe_shape(
    architecture: Architecture, tp: int, server_args: tuple[str, ...], asked_dtype: str | None = None
) -> MoeKernel:
    """What one rank of `tp` runs through SGLang's Triton MoE kernel by our tables, or why there is nothing to tune.

    Args:
        asked_dtype: as the user says that the kernel is called, such as `fp8_w8a8`.

    Raises:
        BadRequest: the model's kernel is of another type than `asked_dtype`.
        WidthMissing: the config leaves one out that is needed.
    """
    flags = ServerFlags(server_args)
    if (nothing := _nothing_to_tune(architecture, flags)) is not None:
        return nothing
    weights = _weights(architecture, flags)
    if not isinstance(weights, MoeShape):
        return weights
    _refuse_other_type(weights, asked_dtype)
    width = architecture.expert_width()
    if problem := _unsplittable(width, tp, weights.block):
        return UnknownKernel(message=problem)
    shared = fused_shared_experts(architecture, flags)
    sizes = {
        "experts": architecture.num_experts + shared,
        "width": width // tp,
        "hidden": architecture.width("hidden_size"),
        "top_k": architecture.num_experts_per_tok + shared,
        "shared": shared,
    }
    return weights.model_copy(update=sizes)


def _nothing_to_tune(architecture: Architecture, flags: ServerFlags) -> NoTritonKernel | UnknownKernel | None:
    """Whatever the types of the weights."""
    return _no_triton_kernel(architecture, flags) or _unknown(architecture)


def _no_triton_kernel(architecture: Architecture, flags: ServerFlags) -> NoTritonKernel | None:
    if not architecture.is_moe and not architecture.experts_unread:
        return NoTritonKernel(reason="dense_model", detail="it has no experts")
    runner = flags.get("moe_runner_backend", "auto")
    if runner not in ("auto", "triton"):
        return NoTritonKernel(reason="no_triton_moe", detail=f"--moe-runner-backend {runner} reads no such config")
    return _reads_no_config(flags)


def _unknown(architecture: Architecture) -> UnknownKernel | None:
    """Say why our tables do not tell this model's experts; None where they do."""
    if architecture.experts_unread:
        return UnknownKernel(message=f"which experts the model has: {architecture.experts_unread}")
    if architecture.family not in FAMILIES:
        return UnknownKernel(message=f"the experts of {architecture.family or 'a model that names no class'}")
    return None


def _reads_no_config(flags: ServerFlags) -> NoTritonKernel | None:
    """Whether the flags alone have the kernel take no config. Source: `get_default_config` and its callers."""
    if "enable_deterministic_inference" not in flags:
        return None
    return NoTritonKernel(reason="deterministic", detail="--enable-deterministic-inference reads no such config")


def _refuse_other_type(kernel: MoeShape, asked: str | None) -> None:
    if asked not in (None, kernel.dtype or "auto"):
        hint = f"leave it out, or say {kernel.dtype}" if kernel.dtype else "leave it out"
        raise BadRequest(f"moe dtype {asked} is not the model's, which is {kernel.dtype or 'bf16'}", hint=hint)


def moe_runner(server_args: tuple[str, ...]) -> str:
    """`--moe-runner-backend`, `auto` where it is not given."""
    return ServerFlags(server_args).get("moe_runner_backend", "auto")


def _weights(architecture: Architecture, flags: ServerFlags) -> MoeShape | NoTritonKernel | UnknownKernel:
    """The types alone, in a shape whose sizes mean nothing yet."""
    plain = flags.dtype(architecture)
    if plain not in _TYPES:
        return UnknownKernel(message=f"the MoE kernel for {plain}")
    empty = MoeShape(experts=1, width=1, hidden=1, top_k=1, activation=plain)
    quantization = architecture.quantization
    method = (quantization.quant_method if quantization else None) or flags.get("quantization")
    if method is None:
        return empty
    if method != MODELOPT_FP8 and _OTHER_KERNELS.search(method):
        return NoTritonKernel(
            reason="no_triton_moe", detail=f"{method} experts do not run on SGLang's Triton MoE kernel"
        )
    otherwise = architecture.expert_dtype or (quantization.otherwise if quantization else None)
    scales = None if otherwise else _scales(quantization, method)
    if scales is None:
        return UnknownKernel(message=f"the MoE kernel of {otherwise or method} weights")
    return empty.model_copy(update={"dtype": FP8, **scales})


def _scales(quantization: Quantization | None, method: str) -> dict[str, object] | None:
    """Return how FP8 experts are scaled, as fields of a MoeShape; None where they may be no FP8 experts."""
    if method == "fp8":
        block = quantization.weight_block_size if quantization else None
        return {"block": (block[0], block[1]) if block and len(block) == 2 else None}
    if method == MODELOPT_FP8:  # an export may leave experts as they were
        return None if quantization and any("expert" in name for name in quantization.ignored_layers) else {}
    scheme = quantization.weights if quantization and method == "compressed-tensors" else None
    if scheme and (scheme.type, scheme.num_bits) == ("float", 8) and scheme.strategy in ("channel", "tensor"):
        return {"per_channel": scheme.strategy == "channel"}
    return None


def _unsplittable(width: int, tp: int, block: tuple[int, int] | None) -> str | None:
    """Why no server starts with experts of this width. Source: `create_weights` of `Fp8MoEMethod` in `fp8.py`."""
    if width % tp:
        return f"the experts' width {width} cannot be split over tp {tp}"
    if block and any(width // tp % size for size in block[: 2 if tp > 1 else 1]):
        return f"the experts' width {width} over tp {tp} is no multiple of the weights' block {block[0]}x{block[1]}"
    return None


def default_batch_sizes(server_args: tuple[str, ...]) -> tuple[int, ...]:
    """Powers of two up to what decode captures and, above it, up to a prefill chunk, each of the two included.

    SGLang takes the entry that is nearest to a batch's number of tokens, so that each serves from three quarters of
    itself to one and a half times itself.
    """
    flags = ServerFlags(server_args)
    given = next((number for name in _DECODE_FLAGS if (number := flags.number(name)) is not None), 0)
    decode = given if given > 0 else DECODE_MAX_BATCH
    chunk = chunked_prefill_size(server_args) or DEFAULT_CHUNKED_PREFILL
    largest = max(decode, chunk if chunk > 0 else DEFAULT_CHUNKED_PREFILL)
    powers = {2**exponent for exponent in range(largest.bit_length()) if 2**exponent <= largest}
    return tuple(sorted(powers | {decode, largest}))
