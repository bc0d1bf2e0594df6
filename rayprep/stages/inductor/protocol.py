"""What the `inductor` stage and its child say to each other, and how large the child's work is.

The parent writes one `DecodeRequest` to a file; the child answers as `child.lines` says, in the end with one
`GraphsLine`. No torch here: the parent plans with this module.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rayprep.base.records import AbsolutePath, Record
from rayprep.sglang.architecture import Architecture
from rayprep.stages.child.failures import ChildError
from rayprep.stages.child.lines import FailLine, StepLine

MAX_LAYERS = 2
"""Layers that the child builds: enough for what is fused across the border of two layers, and all alike after."""
MAX_EXPERTS = 8
"""Experts that the child keeps: the graph is the same for any number, only the tensors grow."""

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Types that the child computes in, and their short names."""

Device = Literal["cpu", "cuda"]


class DecodeRequest(Record):
    """What the child is to compile, or to check. `build` and `check` do the same work."""

    mode: Literal["build", "check"]
    architecture: Architecture
    tp: int = Field(gt=0)
    batch_sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    max_seq_len: int = Field(ge=2)
    """Tokens that one sequence's KV cache holds."""
    device: Device
    seed: int = 0
    cache_dir: AbsolutePath
    """The same as the child's TORCHINDUCTOR_CACHE_DIR."""


class GraphDone(Record):
    """A graph that is compiled (or was found) and computes what eager computes."""

    unit: str
    seconds: float
    """From the call of the compiled function to its first result."""
    max_abs_diff: float
    """The largest difference from eager, in the outputs' own scale (about 1)."""
    cache_hit: bool
    """Nothing of the graph had to be compiled, by torch's own counters."""


class GraphsLine(Record):
    """All graphs are done."""

    event: Literal["graphs"] = "graphs"
    graphs: tuple[GraphDone, ...]
    used: tuple[str, ...]
    """Files that the child read, relative to the cache's folder, POSIX, sorted."""


ChildLine = Annotated[StepLine | GraphsLine | FailLine, Field(discriminator="event")]
CHILD_LINE: TypeAdapter[StepLine | FailLine | GraphsLine] = TypeAdapter(ChildLine)
"""Parses one line of the child's standard output."""


class RankShape(Record):
    """The widths, in elements, of what one tensor-parallel rank computes in a decode step."""

    layers: int
    hidden: int
    heads: int
    """A whole multiple of `kv_heads`."""
    kv_heads: int
    head_dim: int
    intermediate: int
    """Of the dense MLP, or of one expert."""
    experts: int
    """0: a dense MLP."""
    top_k: int
    eps: float
    theta: float
    dtype: str
    """A key of `DTYPES`."""


def rank_shape(architecture: Architecture, tp: int) -> RankShape:
    """The share of one rank of `tp`; a rank has at least one head of each sort.

    Raises:
        WidthMissing: the config leaves one out.
    """
    kv_heads = max(1, architecture.width("num_key_value_heads") // tp)
    group = max(1, architecture.width("num_attention_heads") // tp // kv_heads)
    experts = min(MAX_EXPERTS, architecture.num_experts)
    of_experts = architecture.moe_intermediate_size if architecture.is_moe else None
    width = of_experts or architecture.width("intermediate_size")
    dtype = architecture.dtype.removeprefix("torch.")
    return RankShape(
        layers=min(MAX_LAYERS, architecture.width("num_hidden_layers")),
        hidden=architecture.width("hidden_size"),
        heads=group * kv_heads,
        kv_heads=kv_heads,
        head_dim=architecture.width("head_dim"),
        intermediate=max(1, width // tp),
        experts=experts,
        top_k=min(experts, max(1, architecture.num_experts_per_tok)),
        eps=architecture.rms_norm_eps,
        theta=architecture.rope_theta,
        dtype=dtype if dtype in DTYPES else "bfloat16",
    )


def unit_name(architecture: Architecture, tp: int, batch_size: int, max_seq_len: int, device: Device) -> str:
    """Names one graph among those of a model and TP, e.g. `decode:cpu:bf16:l2:b8:s512`."""
    shape = rank_shape(architecture, tp)
    return f"decode:{device}:{DTYPES[shape.dtype]}:l{shape.layers}:b{batch_size}:s{max_seq_len}"


def _element_bytes(shape: RankShape) -> int:
    return 4 if shape.dtype == "float32" else 2


def weight_bytes(architecture: Architecture, tp: int) -> int:
    """Bytes of the weights that the child makes, one set for all of its graphs."""
    shape = rank_shape(architecture, tp)
    attention = 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.head_dim
    mlp = max(1, shape.experts) * 3 * shape.hidden * shape.intermediate + shape.experts * shape.hidden
    norms = 2 * shape.hidden
    return _element_bytes(shape) * (shape.layers * (attention + mlp + norms) + shape.hidden)


def memory_bytes(architecture: Architecture, tp: int, batch_sizes: tuple[int, ...], max_seq_len: int) -> int:
    """Bytes of the child's tensors at its largest batch size: weights, two KV caches and activations.

    Two caches, since eager and the compiled graph each write into their own. The interpreter, torch and the
    compilers come on top.
    """
    shape = rank_shape(architecture, tp)
    batch = max(batch_sizes)
    cache = 2 * batch * shape.kv_heads * max_seq_len * shape.head_dim * shape.layers * _element_bytes(shape)
    scores = 3 * batch * shape.heads * max_seq_len * 4  # raw, as probabilities, and cast to the model's type
    mlp = max(1, shape.experts) * batch * (3 * shape.intermediate + shape.hidden) * 4
    residual = 8 * batch * shape.hidden * 4
    return weight_bytes(architecture, tp) + 2 * cache + scores + mlp + residual


class Mismatch(ChildError):
    """Compiled and eager computed different things."""
