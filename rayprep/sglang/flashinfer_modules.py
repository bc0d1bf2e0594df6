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

from rayprep.base.records import Record
from rayprep.sglang.architecture import Architecture
from rayprep.sglang.flags import ServerFlags

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
_MODULE_PATH = re.compile(r"(?:^|/)\.cache/flashinfer/[^/]+/[^/]+/(?:cached_ops|generated)/([^/.][^/]*)(/.)?")


class FlashInferModule(Record):
    """One module: a function of `flashinfer.jit` and what it is called with; dtypes by torch's names."""

    generator: str
    args: tuple[bool | int | str, ...] = ()

    def __str__(self) -> str:
        """The unit's name, e.g. `batch_mla:fa3:bf16:bf16:bf16:i32:512:64:0`."""
        words = [_SHORT.get(str(arg), str(arg)) for arg in self.args]
        return ":".join([self.generator.removeprefix("gen_").removesuffix("_module"), *words])


def flashinfer_modules(
    architecture: Architecture, tp: int, server_args: tuple[str, ...]
) -> tuple[FlashInferModule, ...]:
    """The modules that one rank of `tp` needs on sm_90, those that compile longest first; all ranks need the same.

    Raises:
        BadRequest: a word of `server_args` belongs to no flag.
    """
    flags = ServerFlags(server_args)
    dtype = flags.dtype(architecture)
    half = dtype in ("bfloat16", "float16")
    deterministic = "enable_deterministic_inference" in flags
    found: list[FlashInferModule] = []
    if half:
        found += _mla(architecture, dtype, flags) if architecture.is_mla else _gqa(architecture, tp, dtype, flags)
    found += _all_reduce(architecture, tp, flags)
    if flags.get("sampling_backend", "flashinfer") == "flashinfer" and not deterministic:
        # One file of it compiles as long as the longest of attention's: 88 s beside 79 s on an H200's host.
        found.insert(1, FlashInferModule(generator="gen_sampling_module"))
    if half and not deterministic:  # deterministic servers norm with a batch-invariant kernel of SGLang's
        found.append(FlashInferModule(generator="gen_norm_module"))
    if _is_v3_router(architecture):
        found.append(FlashInferModule(generator="gen_dsv3_fused_routing_module"))
    return tuple(found)


def module_of(path: str) -> str | None:
    """FlashInfer's name of the module that a file of its cache belongs to, whatever folder `path` starts from.

    Source of the layout: flashinfer/jit/env.py and core.py (0.6.14). Locks and logs belong to none.
    """
    match = _MODULE_PATH.search(path)
    if match is None or match[1] == "tmp":
        return None
    # generated/ holds some modules' only source beside the folders: silu_and_mul.cu
    return match[1] if match[2] else match[1].split(".", 1)[0]


def _backends(flags: ServerFlags, *, default: str) -> tuple[str, str]:
    """Who attends in prefill and in decode."""
    both = flags.get("attention_backend") or default
    return flags.get("prefill_attention_backend") or both, flags.get("decode_attention_backend") or both


def _gqa(architecture: Architecture, tp: int, dtype: str, flags: ServerFlags) -> list[FlashInferModule]:
    tree = flags.get("speculative_eagle_topk", "")
    drafts_a_tree = tree.isdigit() and int(tree) > 1
    prefill, decode = _backends(flags, default="flashinfer" if drafts_a_tree else "fa3")
    asked = flags.get("kv_cache_dtype", "auto")
    kv_dtype = dtype if asked == "auto" else _KV_DTYPES.get(asked)
    if "flashinfer" not in (prefill, decode) or kv_dtype is None:
        return []
    heads = architecture.num_attention_heads // tp
    group = heads // max(1, architecture.num_key_value_heads // tp)
    deterministic = "enable_deterministic_inference" in flags
    tensor_cores = deterministic or kv_dtype.startswith("float8") or group >= 4
    width = architecture.head_dim
    ragged = prefill == "flashinfer" and not deterministic
    modules: list[FlashInferModule] = []
    if ragged:  # over the keys and values just computed, so of the model's type whatever the cache's is
        modules.append(_prefill("fa3", dtype, dtype, width, width))
    if prefill == "flashinfer" or tensor_cores:
        modules.append(_prefill("fa2", dtype, kv_dtype, width, width))
    if decode == "flashinfer" and not tensor_cores:
        args = (dtype, kv_dtype, dtype, "int32", width, width, 0, False, False)
        modules.append(FlashInferModule(generator="gen_batch_decode_module", args=args))
    if ragged and heads <= _heads_to_merge(width):
        modules.append(FlashInferModule(generator="gen_cascade_module"))
    return modules


def _heads_to_merge(width: int) -> int:
    """Above so many heads a block of merge_state would have over 1024 threads, and Triton merges instead.

    Source: `_merge_state_max_safe_num_heads` in sglang's flashinfer_backend.py, for elements of 2 bytes.
    """
    return 1024 // max(1, width // max(8, width // 32))


def _mla(architecture: Architecture, dtype: str, flags: ServerFlags) -> list[FlashInferModule]:
    prefill, decode = _backends(flags, default="fa3")
    if "flashinfer" not in (prefill, decode):
        return []
    latent, rope = architecture.kv_lora_rank or 0, architecture.qk_rope_head_dim
    modules = []
    if prefill == "flashinfer" and "flashinfer_mla_disable_ragged" not in flags:
        values = architecture.v_head_dim or architecture.head_dim
        modules.append(_prefill("fa3", dtype, dtype, architecture.qk_nope_head_dim + rope, values))
    # The latent cache is read in the model's type, whatever --kv-cache-dtype says.
    args = ("fa3", dtype, dtype, dtype, "int32", latent, rope, False)
    return [*modules, FlashInferModule(generator="gen_batch_mla_module", args=args)]


def _prefill(backend: str, dtype: str, kv_dtype: str, width_qk: int, width_vo: int) -> FlashInferModule:
    """No positional encoding, no sliding window, no soft cap, no QK reduction in half precision."""
    args = (backend, dtype, kv_dtype, dtype, "int32", width_qk, width_vo, 0, False, False, False)
    return FlashInferModule(generator="gen_batch_prefill_module", args=args)


def _all_reduce(architecture: Architecture, tp: int, flags: ServerFlags) -> list[FlashInferModule]:
    off = {"enforce_disable_flashinfer_allreduce_fusion", "enable_deterministic_inference"}
    asked = flags.get("flashinfer_allreduce_fusion_backend")
    wanted = asked or "enable_flashinfer_allreduce_fusion" in flags or _fuses_by_itself(architecture)
    if tp == 1 or not wanted or off & flags.keys():
        return []
    generator = "gen_trtllm_mnnvl_comm_module" if asked == "mnnvl" else "gen_trtllm_comm_module"
    return [FlashInferModule(generator=generator)]


def _fuses_by_itself(architecture: Architecture) -> bool:
    return bool(architecture.architectures) and architecture.architectures[0] in _FUSED_ALL_REDUCE


def _is_v3_router(architecture: Architecture) -> bool:
    experts = architecture.num_experts
    power_of_two = experts > 0 and experts & (experts - 1) == 0
    return architecture.model_type.startswith("deepseek_v3") and power_of_two and architecture.num_experts_per_tok <= 8
