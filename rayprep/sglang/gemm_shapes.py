"""Which matrix products SGLang runs through DeepGEMM for a model, and at which numbers of rows.

A product is X[M, K] times W[N, K] transposed. DeepGEMM chooses its tiles by M, N and K, and compiles them in.
Source: sglang 0.5.16 on sm_90, `srt/layers/quantization/fp8_utils.py`, `srt/layers/deep_gemm_wrapper/compile_utils.py`,
`srt/layers/moe/moe_runner/deep_gemm.py` and the models under `srt/models`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from pydantic import Field

from rayprep.base.records import Record
from rayprep.sglang.architecture import Architecture, Quantization, split
from rayprep.sglang.experts import FAMILIES, fused_shared_experts
from rayprep.sglang.flags import ServerFlags
from rayprep.sglang.fp8_linears import fp8_layers, is_known
from rayprep.sglang.inventory import ExpertFacts, Inventory, LinearFacts
from rayprep.sglang.releases import Since, has_deep_jit, since

LINEAR = "GEMM_NT_F8F8BF16"
EXPERTS = "GROUPED_GEMM_NT_F8F8BF16_MASKED"
_GROUPED = {"float8_e4m3fn": "GROUPED_GEMM_NT_F8F8BF16", "bfloat16": "GROUPED_GEMM_NT_BF16"}
"""Products of experts, by the type of their weights."""
_NO_BLOCKS = re.compile(r"awq|gptq|auto-round|mxfp4|modelopt_fp[48]|bitsandbytes|gguf|w8a8_(?:fp8|int8)|fbgemm_fp8")
"""Quantisations of which no linear layer is FP8 in blocks: `srt/layers/quantization`."""
KINDS = frozenset(
    {
        *(LINEAR, "GROUPED_GEMM_NT_F8F8BF16_CONTIG", EXPERTS),
        *("GEMM_NT_BF16BF16F32", "GROUPED_GEMM_NT_BF16_CONTIG", "GROUPED_GEMM_NT_BF16_MASKED"),
    }
)
"""SGLang's names of the kernels that rayprep can have listed: `DeepGemmKernelType` in compile_utils.py."""

SERVER_UNIT = "server"
"""The unit of a model whose products are not known ahead: the server compiles them for itself."""

DEFAULT_CHUNKED_PREFILL = 8192
"""SGLang's own default on a GPU with 60 to 160 GB of memory, which all of sm_90 are."""


class GemmShape(Record):
    """One family of kernels: all that DeepGEMM compiles for it differ in M alone. Widths in elements, of one rank."""

    kind: str
    n: int = Field(gt=0)
    k: int = Field(gt=0)
    groups: int = Field(default=1, gt=0)
    """Experts of a grouped product, else 1."""

    def __str__(self) -> str:
        return f"{self.kind} N={self.n} K={self.k} groups={self.groups}"

    @property
    def is_fp8(self) -> bool:
        """Operands in FP8 with scales, else in bfloat16."""
        return "F8F8" in self.kind

    @property
    def is_masked(self) -> bool:
        """Each group has rows of its own, of which a mask says how many count."""
        return self.kind.endswith("_MASKED")

    @property
    def is_contiguous(self) -> bool:
        """The groups' rows lie one group after another."""
        return self.kind.endswith("_CONTIG")

    @property
    def is_float32(self) -> bool:
        """The product is in float32, else in bfloat16."""
        return self.kind.endswith("F32")

    @classmethod
    def parse(cls, text: str) -> "GemmShape":
        """The reverse of `str`. Raises ValueError on any other text."""
        match = re.fullmatch(r"(\w+) N=(\d+) K=(\d+) groups=(\d+)", text)
        if match is None:
            raise ValueError(f"{text!r} is no shape of a matrix product")
        return cls(kind=match[1], n=int(match[2]), k=int(match[3]), groups=int(match[4]))


def listed_shapes(inventory: Inventory) -> tuple[GemmShape, ...] | None:
    """What a server runs through DeepGEMM by what the installed SGLang says, each once, sorted.

    Empty where it uses DeepGEMM for nothing; None where its experts are of a type whose kernels are not known.
    """
    if inventory.deep_gemm_rows is None:
        return ()
    found: set[GemmShape] = set()
    for model in inventory.models:
        found |= {
            GemmShape(kind=LINEAR, n=layer.n, k=layer.k)
            for layer in model.linears
            if inventory.dtype == "bfloat16" and _is_product(layer)
        }
        for experts in model.experts:
            if experts.runner == "deep_gemm":
                shapes = _listed_experts(experts, inventory.sglang)
                if shapes is None:
                    return None
                found |= set(shapes)
    return _sorted(found)


def _is_product(layer: LinearFacts) -> bool:
    """Whether DeepGEMM multiplies by this weight. Source: `deepgemm_w8a8_block_fp8_linear_with_fallback`."""
    by_deep_gemm = layer.block_quant and "deepgemm" in (layer.kernel or "")
    return by_deep_gemm and layer.dtype == "float8_e4m3fn" and layer.n % 64 == 0 and layer.k % 128 == 0


def _listed_experts(experts: ExpertFacts, release: str) -> tuple[GemmShape, ...] | None:
    kind, weights = _GROUPED.get(experts.dtype), (experts.weights.get("w13_weight"), experts.weights.get("w2_weight"))
    if kind is None or any(weight is None or len(weight) != 3 for weight in weights):
        return None
    sizes = [(weight[1], weight[2]) for weight in weights if weight]
    return tuple(
        GemmShape(kind=f"{kind}_{layout}", n=n, k=k, groups=experts.local)
        for layout in _layouts(release)
        for n, k in sizes
    )


def _layouts(release: str | None) -> tuple[str, ...]:
    """Return how the rows of a server's experts may lie, where no other host has some of the experts."""
    return ("MASKED", "CONTIG") if since(release, Since.CONTIGUOUS_EXPERTS) else ("MASKED",)


def _sorted(shapes: Iterable[GemmShape]) -> tuple[GemmShape, ...]:
    return tuple(sorted(shapes, key=lambda shape: (shape.kind, shape.n, shape.k)))


def gemm_shapes(
    architecture: Architecture, tp: int, server_args: tuple[str, ...], release: str | None = None
) -> tuple[GemmShape, ...] | None:
    """What SGLang runs through DeepGEMM at this TP by our tables, each once, sorted.

    Empty where it uses DeepGEMM for nothing: weights that are not FP8 in blocks of 128 by 128, another type than
    bfloat16, or another backend asked for. None where that is not known: an architecture that rayprep does not know.

    Args:
        release: of SGLang.

    Raises:
        WidthMissing: the config leaves one out that is needed.
    """
    flags = ServerFlags(server_args)
    has_experts = architecture.is_moe or bool(architecture.experts_unread)
    experts_too = has_experts and flags.get("moe_runner_backend") == "deep_gemm"
    quantization = architecture.quantization
    if quantization and quantization.quant_method != "fp8" and not _is_without_blocks(quantization):
        return None
    if quantization is None or quantization.quant_method != "fp8" or not quantization.weight_block_size:
        return None if experts_too else ()  # its experts would run as bfloat16 or be given blocks when loaded
    if flags.dtype(architecture) != "bfloat16":
        return ()
    if quantization.weight_block_size != (128, 128) or not is_known(architecture):
        return None
    found: set[GemmShape] = set()
    if _linear_backend(flags) in ("auto", "deep_gemm"):
        weights = {(layer.n, layer.k) for layer in fp8_layers(architecture, tp, flags)}
        # Other widths go to a Triton kernel.
        found |= {GemmShape(kind=LINEAR, n=n, k=k) for n, k in weights if n % 64 == 0 and k % 128 == 0}
    if experts_too:
        if architecture.family not in FAMILIES or architecture.experts_unread:
            return None
        found |= set(_expert_shapes(architecture, tp, flags, release))
    return _sorted(found)


def _is_without_blocks(quantization: Quantization) -> bool:
    """Whether no linear layer that is stored so is FP8 with a scale for each block."""
    if quantization.quant_method != "compressed-tensors":
        return _NO_BLOCKS.search(quantization.quant_method or "") is not None
    schemes = [group.weights for group in quantization.config_groups.values()]
    return all(scheme is not None and scheme.strategy != "block" for scheme in schemes)


def m_values(largest: int) -> tuple[int, ...]:
    """The numbers of rows whose kernels together are all that SGLang's own loop reaches up to `largest`, ascending.

    That loop takes every M, but the choice of tiles depends on the M only as ceil(M / 16).
    """
    return (1, *range(16, largest + 16, 16))


def largest_rows(chunked_prefill: int | None) -> int:
    """The largest M of that loop by the size of a prefill chunk. Source: `update_deep_gemm_config`."""
    chunk = DEFAULT_CHUNKED_PREFILL if chunked_prefill is None else chunked_prefill
    largest = 1024 * 64 if chunk < 1 else chunk * 2 if chunk > 8192 else 1024 * 16
    return min(1024 * 128, largest)


def chunked_prefill_size(server_args: tuple[str, ...]) -> int | None:
    """`--chunked-prefill-size`, or None where it is not given as a number."""
    return ServerFlags(server_args).number("chunked_prefill_size")


def fitting(
    shape: GemmShape, rows: Iterable[int], alignment: int, budget: int, release: str | None = None
) -> tuple[int, ...]:
    """Those of `rows` that SGLang's loop would run for the shape with `budget` bytes of GPU memory.

    Args:
        alignment: of a contiguous grouped product's rows, `get_mk_alignment_for_contiguous_layout`.
        release: of SGLang.
    """
    least = 2048 if since(release, Since.SMALLER_WARM_UP) else 4096
    chosen = [m for m in rows if not shape.is_contiguous or m % alignment == 0]
    largest = max(chosen, default=0)
    while operand_bytes(shape, largest, release) > budget and largest > least:
        largest //= 2
    return tuple(m for m in chosen if m <= largest)


def operand_bytes(shape: GemmShape, rows: int, release: str | None = None) -> int:
    """GPU memory of X, W and the product at `rows` rows. Source: `get_memory_requirement` in compile_utils.py."""
    element, result = (1 if shape.is_fp8 else 2), (4 if shape.is_float32 else 2)
    copies = shape.groups if shape.is_masked else 1
    scales = _scale_bytes(shape, copies, rows) if shape.is_fp8 and since(release, Since.SCALES_COUNTED) else 0
    return copies * rows * (shape.k * element + shape.n * result) + shape.groups * shape.n * shape.k * element + scales


def _scale_bytes(shape: GemmShape, copies: int, rows: int) -> int:
    """Return the room for the scales, in float32, of X, X once more as TMA wants it, and W. On sm_90."""
    blocks = -(-shape.k // 128)
    return 4 * blocks * (copies * (rows + -(-rows // 4) * 4) + shape.groups * -(-shape.n // 128))


def uses_nvrtc(environ: Mapping[str, str], deep_gemm: str | None) -> bool:
    """Tell whether this DeepGEMM compiles by NVRTC: SGLang overwrites DG_JIT_USE_NVRTC with a variable of its own.

    Where both names of it are set, the older one wins. Source: `srt/environ.py`.
    """
    asked = environ.get("SGL_DG_USE_NVRTC", environ.get("SGLANG_DG_USE_NVRTC", ""))
    return asked.lower() in ("1", "true", "yes", "y") and not has_deep_jit(deep_gemm)


def missed_shapes(planned: Iterable[str], seen: Iterable[GemmShape]) -> tuple[GemmShape, ...]:
    """What a server named in its log and no unit of the plan was for, each once, in the order seen.

    A unit may say more after its shape, behind a comma. Where the server compiles for itself, nothing is missed.
    """
    known = {unit.partition(",")[0] for unit in planned}
    if SERVER_UNIT in known:
        return ()
    return tuple(shape for shape in dict.fromkeys(seen) if str(shape) not in known)


def _linear_backend(flags: ServerFlags) -> str:
    return flags.get("fp8_gemm_backend") or flags.get("fp8_gemm_runner_backend") or "auto"


def _expert_shapes(architecture: Architecture, tp: int, flags: ServerFlags, release: str | None) -> Iterator[GemmShape]:
    width = split(architecture.expert_width(), tp, "experts' width")
    hidden = architecture.width("hidden_size")
    groups = architecture.num_experts + fused_shared_experts(architecture, flags)
    for layout in _layouts(release):
        kind = f"{_GROUPED['float8_e4m3fn']}_{layout}"
        yield GemmShape(kind=kind, n=2 * width, k=hidden, groups=groups)
        yield GemmShape(kind=kind, n=hidden, k=width, groups=groups)
