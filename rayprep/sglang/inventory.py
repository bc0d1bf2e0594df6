"""What the installed SGLang says that a server needs: the facts that `inside/inventory.py` prints, and its answer.

Only facts are here. Which of them mean a product of DeepGEMM's, a tuned config or a module of FlashInfer's is said
beside the tables that stand in where SGLang cannot be asked: `gemm_shapes`, `moe_shape` and `flashinfer_modules`.
"""

import hashlib
from collections.abc import Mapping

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from rayprep.base.records import Record

ENVIRONMENT = {
    "SGLANG_NCCL_SO_PATH": "/nonexistent",  # no library of NCCL, so that no communicator waits for its peers
    "SGLANG_USE_MESSAGE_QUEUE_BROADCASTER": "0",
    "HF_HUB_OFFLINE": "1",
}
"""What the child that asks needs. Source: pynccl_wrapper.py and distributed/parallel_state.py in sglang 0.5.16."""

Setting = bool | int | float | str | None


class LinearFacts(Record):
    """Linear layers of one rank that are alike."""

    count: int
    name: str
    """The last part of the first one's path."""
    method: str
    """SGLang's class for how its weights are stored."""
    kernel: str | None
    """Of block-wise FP8: the function that multiplies."""
    block_quant: bool
    n: int = Field(gt=0)
    k: int = Field(gt=0)
    """Of the weight [N, K], as it is stored."""
    dtype: str
    """Of the weight, by torch's name."""


class ExpertFacts(Record):
    """Fused MoE layers of one rank that are alike."""

    count: int
    layer: str
    method: str
    scheme: str | None
    """Of compressed-tensors, the class that its method hands the layer to."""
    runner: str | None
    """`triton`, `deep_gemm`, ...; None where the method calls a kernel itself."""
    experts: int = Field(gt=0)
    """With the shared ones that run as routed ones."""
    local: int = Field(gt=0)
    """Of them on this rank."""
    shared: int = Field(ge=0)
    top_k: int = Field(gt=0)
    gated: bool
    activation: str
    dtype: str
    """Of the weights, by torch's name, before they are loaded."""
    block: tuple[int, ...] | None
    weights: dict[str, tuple[PositiveInt, ...]]
    """Shapes of the layer's parameters: w13_weight [E, 2 N, K] (gated), w2_weight [E, K, N], their scales."""
    config_file: str | None
    """By SGLang's own function, on this GPU."""


class AttentionFacts(Record):
    """Attention layers of one rank that are alike. Widths in elements, of one head."""

    count: int
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    width_qk: int = Field(gt=0)
    width_v: int = Field(gt=0)
    window: int | None
    """Tokens of a sliding window."""
    soft_cap: float


class ModelFacts(Record):
    """The layers of one model, each kind once."""

    linears: tuple[LinearFacts, ...]
    experts: tuple[ExpertFacts, ...]
    attention: tuple[AttentionFacts, ...]


class Inventory(ModelFacts):
    """What one rank of a server computes, as the installed SGLang builds it for the server's own flags."""

    sglang: str
    architecture: str
    """The class that was built."""
    tp: int = Field(gt=0)
    dtype: str
    gpu: str
    settings: dict[str, Setting]
    """SGLang's flags as it resolves them."""
    kv_cache_quantization: str | None
    """As the model's quantisation has it, where the flags leave it open."""
    deep_gemm_rows: tuple[tuple[int, int, int], ...] | None
    """Numbers of rows that SGLang's DeepGEMM loop reaches, [first, last, step] each; None where it is off."""
    latent: tuple[int | None, int | None] | None
    """Of multi-head latent attention: the widths of the latent space and of rope."""
    draft: ModelFacts | None
    """The draft model of speculative decoding."""
    variables: str = ""
    """`variables_digest` of the environment in which SGLang was asked."""

    def setting(self, name: str) -> str:
        """Return a setting's words; empty where it is not set."""
        value = self.settings.get(name)
        return "" if value is None or value is False else str(value)

    @property
    def models(self) -> tuple[ModelFacts, ...]:
        return (self, self.draft) if self.draft else (self,)

    @property
    def largest_rows(self) -> int | None:
        """The largest number of rows of a product; None where DeepGEMM is off."""
        return max((last for _, last, _ in self.deep_gemm_rows), default=0) if self.deep_gemm_rows else None


class Refusal(Record):
    """SGLang itself says no to such a model or flags, as its server would."""

    refused: str


class Unasked(Record):
    """There is no answer, and why."""

    unknown: str


Answer = Inventory | Refusal | Unasked
_ANSWER: TypeAdapter[Inventory | Refusal | Unasked] = TypeAdapter(Answer)


def variables_digest(environ: Mapping[str, str]) -> str:
    """Return a digest of SGLang's own variables, less folders, any of which may change its answer; empty for none.

    SGLang 0.5.16 has 419 of them, among which are those that name other models' classes and other kernels.
    """
    own = sorted(
        (name, value)
        for name, value in environ.items()
        if name.startswith(("SGLANG_", "SGL_")) and not name.endswith("_DIR")
    )
    return hashlib.sha256(repr(own).encode("utf-8", "surrogateescape")).hexdigest()[:16] if own else ""


def parse_answer(line: str) -> Answer | None:
    """Read a line that the child printed; None where it is none of its own."""
    try:
        return _ANSWER.validate_json(line)
    except ValidationError:
        return None
