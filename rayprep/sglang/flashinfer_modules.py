"""Which FlashInfer modules a server of SGLang compiles on Hopper (sm_90), from its model, TP and arguments.

Read in sglang 0.5.16 and flashinfer 0.6.14:
- which backend attends: `server_args.py` (`_get_default_attn_backend`, `get_attention_backends`);
- GQA: `layers/attention/flashinfer_backend.py`. Prompts without a cached prefix go to the ragged wrapper, whose
  backend `auto` is fa3 on sm_90; the paged wrapper is planned in every prefill and is fa2; `merge_state` (cascade)
  joins the two. Decode is the same fa2 module where tensor cores are used (`should_use_tensor_core`), else
  `batch_decode`;
- MLA: `layers/attention/flashinfer_mla_backend.py`: one MLA module for decode and paged prefill, and the ragged
  wrapper at the head width before absorption;
- the arguments of each generator: `plan` in flashinfer's `prefill.py`, `decode.py` and `mla/_core.py`;
- norm: `sgl_kernel/elementwise.py` hands every RMS norm in half precision to `flashinfer.norm`, which compiles
  `norm` wherever its CuTe DSL kernels cannot be imported. Whether they can is not known before a look at the
  installation, so it is always listed;
- sampling: `layers/sampler.py` and `sgl_kernel/sampling.py`, for top-p, top-k and min-p;
- all-reduce at TP above 1: `arg_groups/overrides.py` (`_flashinfer_allreduce_fusion_auto_enable`), on sm_90 `trtllm`;
- DeepSeek-V3's router: `layers/moe/topk.py` (`biased_grouped_topk_gpu`).
Rope, activation and the paged write of keys and values are SGLang's own kernels. Sliding windows, speculative drafts
and MoE runners of FlashInfer are left to the server.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from rayprep.base.records import Record
from rayprep.sglang.architecture import Architecture
from rayprep.sglang.flags import ServerFlags
from rayprep.sglang.inventory import AttentionFacts, Inventory
from rayprep.sglang.releases import Since, since

_SHORT = {
    **{"bfloat16": "bf16", "float16": "f16", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "int32": "i32"},
    **{"True": "1", "False": "0"},
}
_KV_DTYPES = {
    **{"bf16": "bfloat16", "bfloat16": "bfloat16", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"},
    # FP4 is unpacked to FP8 before FlashInfer sees it.
    **{"fp4_mx_block16": "float8_e4m3fn", "fp4_e2m1": "float8_e4m3fn"},
}
_FUSED_ALL_REDUCE = frozenset(
    {
        *("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GptOssForCausalLM", "GlmMoeDsaForCausalLM"),
        *("Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM", "MistralLarge3ForCausalLM", "Qwen3MoeForCausalLM"),
        *("Qwen3VLMoeForConditionalGeneration", "Qwen3NextForCausalLM", "KimiK25ForConditionalGeneration"),
        *("Qwen3_5MoeForConditionalGeneration", "InternS2PreviewForConditionalGeneration"),
        *("Qwen3_5ForConditionalGeneration", "NemotronHForCausalLM", "NemotronHPuzzleForCausalLM"),
    }
)
"""Models for which SGLang fuses all-reduce and norm by itself. Source: `_FLASHINFER_ALLREDUCE_FUSION_ARCHS`."""
_FUSED_SINCE = {
    "DeepseekV4ForCausalLM": Since.FUSED_ALL_REDUCE_V4,
    "Qwen4ExpForConditionalGeneration": Since.FUSED_ALL_REDUCE_EXP,
    "NemotronH_Omni_Reasoning_V3": Since.FUSED_ALL_REDUCE_EXP,
}
_ALL_REDUCE = {
    **{"auto": "gen_trtllm_comm_module", "trtllm": "gen_trtllm_comm_module", "mnnvl": "gen_trtllm_mnnvl_comm_module"},
    "cutedsl": None,  # for Blackwell, and no module of FlashInfer's JIT
}
"""By the backend, on sm_90; one that is not known is taken for `auto`."""
NEWER_GENERATORS = "flashinfer.jit.attention.modules"
_FA2_PREFILL = ("_gen_batch_prefill_primary_module", "_gen_batch_prefill_independent_paged_module")
"""Since 0.7.1, for keys and values of equal strides and of unlike ones.

Source: `get_batch_prefill_module` in flashinfer/prefill.py, which decode with tensor cores calls as well."""
_MODULE_PATH = re.compile(r"(?:^|/)\.cache/flashinfer/[^/]+/[^/]+/(?:cached_ops|generated)/([^/.][^/]*)(/.)?")


class Attention(NamedTuple):
    """One kind of a rank's attention layers. Widths in elements, of one head."""

    heads: int
    kv_heads: int
    width_qk: int
    width_v: int


class Latent(NamedTuple):
    """Multi-head latent attention: the widths of the latent space and of rope, and of a head before absorption."""

    space: int
    rope: int
    width_qk: int
    width_v: int


class Server(NamedTuple):
    """What of a server decides its modules, whoever says so. Types by torch's names."""

    dtype: str
    attention: tuple[Attention, ...]
    latent: Latent | None
    prefill: str
    """The backend that attends in prefill."""
    decode: str
    kv_cache: str
    """`--kv-cache-dtype`."""
    all_reduce: str
    """The backend that fuses all-reduce and norm; empty for none."""
    sampling: str
    deterministic: bool
    ragged: bool
    """Prompts of latent attention without a cached prefix go to a wrapper of their own."""


class FlashInferModule(Record):
    """One module: a function of `flashinfer.jit` and what it is called with; dtypes by torch's names."""

    generator: str
    args: tuple[bool | int | str, ...] = ()

    def __str__(self) -> str:
        """The unit's name, e.g. `batch_mla:fa3:bf16:bf16:bf16:i32:512:64:0`."""
        words = [_SHORT.get(str(arg), str(arg)) for arg in self.args]
        return ":".join([self.generator.removeprefix("gen_").removesuffix("_module"), *words])

    @property
    def fa3_widths(self) -> tuple[bool | int | str, ...]:
        """Widths of a head's keys and values, where FA3 is to attend in prefill; else empty."""
        is_fa3 = self.generator == "gen_batch_prefill_module" and self.args[:1] == ("fa3",)
        return self.args[5:7] if is_fa3 else ()

    @property
    def by_fa2(self) -> "FlashInferModule":
        return self.model_copy(update={"args": ("fa2", *self.args[1:])})

    @property
    def newer(self) -> tuple[str, ...]:
        """The generators that flashinfer calls instead, with the same arguments, where it has them.

        The first one's module is loaded; of the others it writes the sources.
        """
        is_fa2 = self.generator == "gen_batch_prefill_module" and self.args[:1] == ("fa2",)
        return _FA2_PREFILL if is_fa2 else ()


def flashinfer_modules(
    architecture: Architecture,
    tp: int,
    server_args: tuple[str, ...],
    inventory: Inventory | None = None,
    version: str | None = None,
) -> tuple[FlashInferModule, ...]:
    """The modules that one rank of `tp` needs on sm_90, those that compile longest first; all ranks need the same.

    Args:
        inventory: what the installed SGLang says; our tables where it was not asked.
        version: SGLang's, for our tables.

    Raises:
        BadRequest: a word of `server_args` belongs to no flag.
        WidthMissing: the config leaves one out that is needed.
    """
    flags = ServerFlags(server_args)
    server = _listed(inventory, flags) if inventory else _by_tables(architecture, tp, flags, version)
    half = server.dtype in ("bfloat16", "float16")
    found: list[FlashInferModule] = []
    if half:
        found += _mla(server, server.latent) if server.latent else _gqa(server)
    if server.all_reduce and (generator := _ALL_REDUCE.get(server.all_reduce, _ALL_REDUCE["auto"])):
        found.append(FlashInferModule(generator=generator))
    if server.sampling == "flashinfer" and not server.deterministic:
        # One file of it compiles as long as the longest of attention's: 88 s beside 79 s on an H200's host.
        found.insert(1, FlashInferModule(generator="gen_sampling_module"))
    if half and not server.deterministic:  # deterministic servers norm with a batch-invariant kernel of SGLang's
        found.append(FlashInferModule(generator="gen_norm_module"))
    if _is_v3_router(architecture):
        found.append(FlashInferModule(generator="gen_dsv3_fused_routing_module"))
    return tuple(found)


def _listed(inventory: Inventory, flags: ServerFlags) -> Server:
    """As the installed SGLang resolves it. Layers with a sliding window or a soft cap are left to the server."""
    both = inventory.setting("attention_backend")
    layers = [layer for layer in inventory.attention if layer.window is None and not layer.soft_cap]
    kv_cache = inventory.setting("kv_cache_dtype") or "auto"
    if kv_cache == "auto" and (inventory.kv_cache_quantization or "").upper() == "FP8":
        kv_cache = "fp8_e4m3"
    fused = inventory.setting("flashinfer_allreduce_fusion_backend")
    return Server(
        dtype=inventory.dtype,
        attention=tuple(dict.fromkeys(_attention(layer) for layer in layers)),
        latent=_latent(inventory, layers),
        prefill=inventory.setting("prefill_attention_backend") or both,
        decode=inventory.setting("decode_attention_backend") or both,
        kv_cache=kv_cache,
        all_reduce="" if inventory.tp == 1 else fused or inventory.setting("enable_flashinfer_allreduce_fusion"),
        sampling=inventory.setting("sampling_backend"),
        deterministic="enable_deterministic_inference" in flags,
        ragged="flashinfer_mla_disable_ragged" not in flags,
    )


def _attention(layer: AttentionFacts) -> Attention:
    return Attention(layer.heads, layer.kv_heads, layer.width_qk, layer.width_v)


def _latent(inventory: Inventory, layers: list[AttentionFacts]) -> Latent | None:
    """Before absorption a layer has as many heads for keys as for queries, after it one."""
    space, rope = inventory.latent or (None, None)
    if space is None or rope is None:
        return None
    absorbed = (space + rope, space)  # which has one head for keys, as a rank with one head has before it
    whole = (layer for layer in layers if (layer.width_qk, layer.width_v) != absorbed)
    before = next((layer for layer in whole if layer.kv_heads == layer.heads), None)
    if before is None:
        return None
    return Latent(space, rope, before.width_qk, before.width_v)


def _by_tables(architecture: Architecture, tp: int, flags: ServerFlags, version: str | None) -> Server:
    """Resolve it as SGLang does for the models that the tables were read for."""
    tree = flags.get("speculative_eagle_topk", "")
    drafts_a_tree = tree.isdigit() and int(tree) > 1
    both = flags.get("attention_backend") or ("flashinfer" if drafts_a_tree and not architecture.is_mla else "fa3")
    prefill = flags.get("prefill_attention_backend") or both
    decode = flags.get("decode_attention_backend") or both
    by_us = "flashinfer" in (prefill, decode)
    latent = _latent_of(architecture) if by_us and architecture.is_mla else None
    deterministic = "enable_deterministic_inference" in flags
    return Server(
        dtype=flags.dtype(architecture),
        attention=(_attention_of(architecture, tp),) if by_us and latent is None else (),
        latent=latent,
        prefill=prefill,
        decode=decode,
        kv_cache=flags.get("kv_cache_dtype", "auto"),
        all_reduce=_all_reduce(architecture, tp, flags, version),
        sampling=flags.get("sampling_backend", "flashinfer"),
        deterministic=deterministic,
        ragged="flashinfer_mla_disable_ragged" not in flags,
    )


def _attention_of(architecture: Architecture, tp: int) -> Attention:
    width = architecture.width("head_dim")
    return Attention(architecture.share("num_attention_heads", tp), architecture.kv_heads(tp), width, width)


def _latent_of(architecture: Architecture) -> Latent:
    rope = architecture.qk_rope_head_dim
    values = architecture.v_head_dim or architecture.width("head_dim")
    return Latent(architecture.kv_lora_rank or 0, rope, architecture.qk_nope_head_dim + rope, values)


def module_of(path: str) -> str | None:
    """FlashInfer's name of the module that a file of its cache belongs to, whatever folder `path` starts from.

    Source of the layout: flashinfer/jit/env.py and core.py (0.6.14). Locks and logs belong to none.
    """
    match = _MODULE_PATH.search(path)
    if match is None or match[1] == "tmp":
        return None
    # generated/ holds some modules' only source beside the folders: silu_and_mul.cu
    return match[1] if match[2] else match[1].split(".", 1)[0]


def _gqa(server: Server) -> list[FlashInferModule]:
    kv_dtype = server.dtype if server.kv_cache == "auto" else _KV_DTYPES.get(server.kv_cache)
    if "flashinfer" not in (server.prefill, server.decode) or kv_dtype is None:
        return []
    return list(dict.fromkeys(module for layer in server.attention for module in _gqa_layer(server, layer, kv_dtype)))


def _gqa_layer(server: Server, layer: Attention, kv_dtype: str) -> Iterator[FlashInferModule]:
    tensor_cores = server.deterministic or kv_dtype.startswith("float8") or layer.heads // layer.kv_heads >= 4
    widths = (layer.width_qk, layer.width_v)
    ragged = server.prefill == "flashinfer" and not server.deterministic
    if ragged:  # over the keys and values just computed, so of the model's type whatever the cache's is
        yield _prefill("fa3", server.dtype, server.dtype, *widths)
    if server.prefill == "flashinfer" or tensor_cores:
        yield _prefill("fa2", server.dtype, kv_dtype, *widths)
    if server.decode == "flashinfer" and not tensor_cores:
        args = (server.dtype, kv_dtype, server.dtype, "int32", *widths, 0, False, False)
        yield FlashInferModule(generator="gen_batch_decode_module", args=args)
    if ragged and layer.heads <= _heads_to_merge(layer.width_v):
        yield FlashInferModule(generator="gen_cascade_module")


def _heads_to_merge(width: int) -> int:
    """Above so many heads a block of merge_state would have over 1024 threads, and Triton merges instead.

    Source: `_merge_state_max_safe_num_heads` in sglang's flashinfer_backend.py, for elements of 2 bytes.
    """
    return 1024 // max(1, width // max(8, width // 32))


def _mla(server: Server, latent: Latent) -> list[FlashInferModule]:
    if "flashinfer" not in (server.prefill, server.decode):
        return []
    dtype, modules = server.dtype, []
    if server.prefill == "flashinfer" and server.ragged:
        modules.append(_prefill("fa3", dtype, dtype, latent.width_qk, latent.width_v))
    # The latent cache is read in the model's type, whatever --kv-cache-dtype says.
    args = ("fa3", dtype, dtype, dtype, "int32", latent.space, latent.rope, False)
    return [*modules, FlashInferModule(generator="gen_batch_mla_module", args=args)]


def _prefill(backend: str, dtype: str, kv_dtype: str, width_qk: int, width_vo: int) -> FlashInferModule:
    """No positional encoding, no sliding window, no soft cap, no QK reduction in half precision."""
    args = (backend, dtype, kv_dtype, dtype, "int32", width_qk, width_vo, 0, False, False, False)
    return FlashInferModule(generator="gen_batch_prefill_module", args=args)


def _all_reduce(architecture: Architecture, tp: int, flags: ServerFlags, version: str | None) -> str:
    """Return the backend that fuses it; empty for none."""
    off = {"enforce_disable_flashinfer_allreduce_fusion", "enable_deterministic_inference"}
    asked = flags.get("flashinfer_allreduce_fusion_backend")
    by_itself = _is_fused_by_itself(architecture.family, version)
    wanted = asked or "enable_flashinfer_allreduce_fusion" in flags or by_itself
    return "" if tp == 1 or not wanted or off & flags.keys() else asked or "auto"


def _is_fused_by_itself(family: str, version: str | None) -> bool:
    first = _FUSED_SINCE.get(family)
    return family in _FUSED_ALL_REDUCE or (first is not None and since(version, first))


def _is_v3_router(architecture: Architecture) -> bool:
    experts = architecture.num_experts
    power_of_two = experts > 0 and experts & (experts - 1) == 0
    return architecture.model_type.startswith("deepseek_v3") and power_of_two and architecture.num_experts_per_tok <= 8
