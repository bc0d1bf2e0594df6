"""The widths of a model, read from its Hugging Face `config.json`.

Only the keys that decide which kernels are compiled are read; everything else in the file is ignored. No width must be
there or be one: a model that says one by another name, leaves it to transformers' defaults, or has 0 for what it does
not have, is served all the same, and what cannot do without asks for it by `width`.
Source of the names: transformers' configuration classes (Qwen2, Qwen3, Qwen3-MoE, Llama, Mixtral, DeepSeek-V2/V3,
GLM-4.5); `sglang/expert_keys` has those of the experts.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import AliasChoices, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError, model_validator

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record, first_problem
from rayprep.sglang import expert_keys

_STORED = ("quantization_config", "compression_config")
HF_QUANT_CONFIG = "hf_quant_config.json"
QUANTIZATION_FILES = (HF_QUANT_CONFIG, "quant_config.json", "quantize_config.json", "quantization_config.json")
"""Files beside a config.json that SGLang reads how the weights are stored from, where the config does not say it.

Source: `_parse_quant_hf_config` in sglang 0.5.16, `srt/configs/model_config.py`, `get_quant_config` in
`srt/model_loader/weight_utils.py`, and `get_config_filenames` of the methods in `srt/layers/quantization/`.
"""
_LAYERS, _WIDTH, _VOCABULARY = 10_000, 10_000_000, 1_000_000_000
"""No model has as many. A file can come from anywhere, and what is planned grows with these."""


_ANY_VOCABULARY = 1000
"""Every language model has more."""


class WeightScheme(Record):
    """How compressed-tensors stores one group of weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_bits: int | None = None
    type: str | None = None
    """`float` or `int`."""
    strategy: str | None = None
    """What has a scale of its own: `tensor`, `channel`, `block` or `group`."""


class WeightGroup(Record):
    """One of compressed-tensors' `config_groups`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weights: WeightScheme | None = None


class Quantization(Record):
    """`quantization_config`: how the weights are stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: str | None = None
    """By SGLang's name, in lower case: modelopt's exports say only which `quant_algo` they have."""
    weight_block_size: tuple[PositiveInt, ...] | None = None
    """Rows and columns of one scaling block, usually (128, 128)."""
    ignored_layers: tuple[str, ...] = Field(
        default=(),
        validation_alias=AliasChoices("ignored_layers", "modules_to_not_convert", "ignore", "exclude_modules"),
    )
    """Parts of module names that are left unquantised."""
    otherwise: str | None = Field(default=None, validation_alias=AliasChoices("moe_quant_algo", "store_dtype"))
    """How some weights are stored in another way than the method says."""
    config_groups: dict[str, WeightGroup] = Field(default_factory=dict)

    @property
    def weights(self) -> WeightScheme | None:
        """Of compressed-tensors: the scheme, where all groups have one and the same."""
        found = {group.weights for group in self.config_groups.values()}
        return found.pop() if len(found) == 1 else None

    @model_validator(mode="before")
    @classmethod
    def _as_sglang_reads_it(cls, data: object) -> object:
        """A key that is null is one left out: real configs say `"modules_to_not_convert": null`."""
        if not isinstance(data, dict):
            return data
        keys = _given(data)
        if keys.get("quant_method", "modelopt") == "modelopt" and (method := _modelopt_method(keys)):
            keys["quant_method"] = method
        elif isinstance(named := keys.get("quant_method"), str):
            keys["quant_method"] = named.lower()
        return keys


def _given(data: object) -> dict[str, object]:
    """Return the keys of an object that are not null; none of what is no object."""
    return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else {}


def _modelopt_method(keys: Mapping[str, object]) -> str | None:
    """Return SGLang's name for what modelopt made; None where it is neither FP8 nor FP4.

    Source: `_parse_modelopt_quant_config` in sglang 0.5.16, `srt/configs/model_config.py`.
    """
    algo, layers = str(keys.get("quant_algo") or ""), keys.get("quantized_layers")
    if algo == "MIXED_PRECISION":
        named = [layer for layer in layers.values() if isinstance(layer, dict)] if isinstance(layers, dict) else []
        kinds = {str(layer.get("quant_algo")).upper() for layer in named}
        return "modelopt_mixed" if kinds & {"NVFP4", "W4A16_NVFP4"} else "w4afp8"
    return "modelopt_fp4" if "FP4" in algo else "modelopt_fp8" if "FP8" in algo else None


Width = Literal[
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
]


class WidthMissing(Exception):
    """The config gives no number that can be used for a width; its message says which."""


def split(width: int, tp: int, name: str) -> int:
    """Return a rank's part of a width. Raises WidthMissing where it cannot be split."""
    if width % tp:
        raise WidthMissing(f"the model's {name} of {width} cannot be split over tp {tp}")
    return width // tp


class Architecture(Record):
    """What of a model's `config.json` decides its kernels. Widths are in elements, of the whole model (TP 1)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architectures: tuple[str, ...] = ()
    model_type: str = "unknown"
    hidden_size: int | None = Field(default=None, gt=0, le=_WIDTH)
    intermediate_size: int | None = Field(default=None, gt=0, le=_WIDTH)
    num_hidden_layers: int | None = Field(default=None, gt=0, le=_LAYERS)
    num_attention_heads: int | None = Field(default=None, gt=0, le=_WIDTH)
    num_key_value_heads: int | None = Field(default=None, gt=0, le=_WIDTH)
    head_dim: int | None = Field(default=None, gt=0, le=_WIDTH)
    vocab_size: int | None = Field(default=None, gt=0, le=_VOCABULARY)
    max_position_embeddings: int = Field(default=4096, gt=0)
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    dtype: str = Field(default="float32", validation_alias=AliasChoices("torch_dtype", "dtype"))
    """As the config has it; one that names none is taken for float32, as SGLang takes it."""
    num_experts: int = Field(default=0, ge=0, le=_WIDTH, validation_alias=AliasChoices(*expert_keys.COUNT))
    num_experts_per_tok: int = Field(default=0, ge=0, le=_WIDTH)
    moe_intermediate_size: int | None = Field(default=None, gt=0, le=_WIDTH)
    expert_dtype: str | None = None
    """Of the experts' weights, where it is another than the rest's."""
    experts_unread: str = ""
    """Why the three above do not tell which experts the model has; empty where they do."""
    unread: dict[str, str] = Field(default_factory=dict)
    """Keys that are not read, and what they have instead of a value that could be."""
    n_shared_experts: int = Field(default=0, ge=0, le=_WIDTH)
    shared_expert_intermediate_size: int = Field(default=0, ge=0, le=_WIDTH)
    """Qwen2-MoE's way to say how wide its one shared expert is; DeepSeek counts experts instead."""
    first_k_dense_replace: int = Field(default=0, ge=0)
    """How many of the first layers of a DeepSeek MoE model are dense."""
    moe_layer_freq: int = Field(default=1, ge=1)
    """Every how many of the layers after those are sparse."""
    decoder_sparse_step: int = Field(default=1, ge=1)
    """Every how many layers of a Qwen MoE model are sparse."""
    mlp_only_layers: tuple[int, ...] = ()
    """Layers of a Qwen MoE model that are dense all the same."""
    q_lora_rank: int | None = Field(default=None, gt=0, le=_WIDTH)
    kv_lora_rank: int | None = Field(default=None, gt=0, le=_WIDTH)
    """Set for multi-head latent attention (MLA), and only there."""
    qk_nope_head_dim: int = Field(default=0, ge=0, le=_WIDTH)
    qk_rope_head_dim: int = Field(default=0, ge=0, le=_WIDTH)
    v_head_dim: int | None = Field(default=None, gt=0, le=_WIDTH)
    quantization: Quantization | None = None

    def width(self, name: Width) -> int:
        """Return a width. Raises WidthMissing where the config does not say it."""
        value: int | None = getattr(self, name)
        if value is None:
            why = self.unread.get(name, "does not say it")
            raise WidthMissing(f"it needs the model's {name}, and the config.json {why}")
        return value

    def share(self, name: Width, tp: int) -> int:
        """Return a rank's part of a width. Raises WidthMissing where there is none, or it cannot be split over `tp`."""
        return split(self.width(name), tp, name)

    def expert_width(self) -> int:
        """Return how wide one expert is. Raises WidthMissing where the config does not say it."""
        return self.moe_intermediate_size or self.width("intermediate_size")

    def kv_heads(self, tp: int) -> int:
        """Return a rank's key-value heads, at least one. Raises WidthMissing as `width` does."""
        return max(1, self.width("num_key_value_heads") // tp)

    @property
    def token_ids(self) -> int:
        """Ids from 0 to this one are tokens of the model: of its vocabulary, or of any where it is not said."""
        return self.vocab_size or _ANY_VOCABULARY

    @property
    def family(self) -> str:
        """The class that SGLang looks for."""
        return self.architectures[0] if self.architectures else ""

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def weight_block_size(self) -> tuple[int, ...] | None:
        return self.quantization.weight_block_size if self.quantization else None


_OWN = frozenset({"quantization", "experts_unread", "unread"})
"""Fields that are made of more than one key."""
_READ = {
    key: TypeAdapter[object](field.rebuild_annotation())
    for name, field in Architecture.model_fields.items()
    if name not in _OWN
    for key in (field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else (name,))
    if isinstance(key, str)
}
"""Values that each key may have."""
_EVERY_MODEL_HAS = frozenset({"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})
"""Where one of these has no number, the file is no model's."""
_INNER = ("thinker_config", "llm_config", "language_config", "text_config")
"""Where a model of several parts has its language model's widths, the first that it has.

Source: `get_hf_text_config` in sglang 0.5.16, `srt/utils/hf_transformers/common.py`.
"""


def _language_model(data: object) -> dict[str, object]:
    """Return the widths' own object; empty where they stand at the top."""
    keys = _given(data)
    inner = next((found for name in _INNER if (found := _given(keys.get(name)))), {})
    return {**inner, **_given(inner.get("text_config"))}


def _readable(keys: Mapping[str, object]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the keys that can be read, and of the others why they cannot.

    Raises:
        ValueError: a key that every model has is no number.
    """
    found: dict[str, object] = {}
    unread: dict[str, str] = {}
    for name, value in sorted(keys.items()):
        one = value
        if name in _READ:
            try:
                one = _one_for_all_layers(value, _READ[name])
            except ValidationError as error:
                if name in _EVERY_MODEL_HAS and not isinstance(value, list | dict) and value != 0:
                    raise ValueError(f"{name}: {first_problem(error)}") from None
                unread[name] = _instead(value)
                continue
        found[name] = one
    return found, unread


def _one_for_all_layers(value: object, allowed: TypeAdapter[object]) -> object:
    """Return the value, or what all elements of a list say where the key has no list. Raises ValidationError."""
    try:
        return allowed.validate_python(value)
    except ValidationError:
        if not isinstance(value, list) or not value or any(other != value[0] for other in value):
            raise
        return allowed.validate_python(value[0])


def _instead(value: object) -> str:
    if isinstance(value, list | dict):
        return "has one for each layer"
    return f"says {json.dumps(value):.40}"


def _flat(data: Mapping[str, object]) -> dict[str, object]:
    """Return a config's keys as fields, with transformers' own defaults for keys that it leaves out or has as null."""
    own, inner = _given(data), _language_model(data)
    # How the weights are stored is the whole model's to say; widths are the language model's.
    keys = {**own, **inner, **{name: own[name] for name in _STORED if isinstance(own.get(name), dict)}}
    rope = keys.get("rope_parameters")  # where transformers 5 puts it
    if isinstance(rope, dict) and "rope_theta" in rope:
        keys.setdefault("rope_theta", rope["rope_theta"])
    found, unread = _readable(keys)
    heads, hidden = found.get("num_attention_heads"), found.get("hidden_size")
    if isinstance(heads, int):
        if "num_key_value_heads" not in unread:
            found.setdefault("num_key_value_heads", heads)
        if isinstance(hidden, int) and "head_dim" not in unread:
            found.setdefault("head_dim", max(1, hidden // heads))
    stored = next((found[name] for name in _STORED if isinstance(found.get(name), dict)), None)
    return {
        **{name: value for name, value in found.items() if name not in _STORED},
        "quantization": None if stored is None else _quantization(stored),
        "experts_unread": expert_keys.unread(found, unread),
        "unread": unread,
    }


def _quantization(keys: object) -> Quantization:
    """Return how weights are stored; by a method that nothing knows where that cannot be read."""
    try:
        return Quantization.model_validate(keys)
    except ValidationError:
        return Quantization(quant_method="unreadable")


def parse_architecture(text: str, source: str, beside: Mapping[str, str] = MappingProxyType({})) -> Architecture:
    """Reads a `config.json`'s text.

    Args:
        beside: the texts of other files of its folder, by name. Where the config says nothing of a quantisation,
            modelopt's `hf_quant_config.json` does.

    Raises:
        BadRequest: not JSON, not an object, names no model, or has text where every model has a number.
    """
    try:
        # Not pydantic's own parser: transformers writes an infinite number as `Infinity`.
        if not isinstance(data := json.loads(text), dict):
            raise ValueError("it is no object")
        architecture = Architecture.model_validate(_flat(data))
        if architecture.model_type == "unknown" and not architecture.family:
            raise ValueError("it names no model")
        if architecture.quantization is None and HF_QUANT_CONFIG in beside:
            return architecture.model_copy(update={"quantization": _exported(beside[HF_QUANT_CONFIG])})
        return architecture
    except (ValueError, RecursionError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise BadRequest(
            f"model config {source} cannot be read: {problem}",
            hint="give a Hugging Face config.json of a causal language model",
        ) from None


def _exported(text: str) -> Quantization | None:
    """Return the method alone, as SGLang reads the file; None where it names none that is known, or is not readable."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        keys = json.loads(text)["quantization"]
        if method := _modelopt_method(keys):
            return Quantization(quant_method=method, ignored_layers=tuple(map(str, keys.get("exclude_modules") or ())))
    return None


def config_digest(text: str, beside: Mapping[str, str] = MappingProxyType({})) -> str:
    """`sha256:` of the config with its keys in order, so that white space and key order do not matter.

    Args:
        beside: the texts of those of `QUANTIZATION_FILES` that its folder has. Where there is none, or the config
            itself says how the weights are stored, the digest is the config's alone: hosts that have fetched more of a
            model's files than others have the same model.
    """
    if not beside or says_how_it_is_stored(text):
        return _digest(_canonical(text))
    files = {name: _canonical(other) for name, other in {**beside, "config.json": text}.items()}
    return _digest(json.dumps(files, sort_keys=True))


def says_how_it_is_stored(text: str) -> bool:
    """Tell whether a config.json names a quantisation, so that SGLang looks for it nowhere else."""
    data = _given(json.loads(text))
    return any(_given(data.get(name)) or _given(_language_model(data).get(name)) for name in _STORED)


def _canonical(text: str) -> str:
    """Return JSON with its keys in order; what is no JSON as it is."""
    try:
        return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return text


def _digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
