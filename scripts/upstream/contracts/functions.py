"""Modules, functions and attributes of SGLang that rayprep's child processes use: the inventory and the MoE tuner.

Most are written here once more: `inside/fused_moe.py` and `moe_tune/bench.py` cannot be imported without SGLang, and
what `inside/inventory.py` imports stands in its functions.
"""

import re

from rayprep.sglang.experts import FAMILIES
from rayprep.sglang.flashinfer_modules import _FUSED_ALL_REDUCE
from rayprep.sglang.fp8_linears import _DEEPSEEK, _DENSE, _QWEN_MOE
from rayprep.sglang.gemm_shapes import KINDS
from rayprep.sglang.inside.inventory import _LATENT, _SETTINGS, _WEIGHTS
from rayprep.sglang.moe_shape import _FP8, _PLAIN
from rayprep.stages.moe_tune.process_bench import _SGLANG_KERNELS
from scripts.upstream.checks import ARGUMENTS, Calls, Check, File, Item, Named, Says, Wants
from scripts.upstream.contract import Contract, rows

_SRT = "sglang.srt"
_LAYERS = f"{_SRT}.layers"
_MOE = f"{_LAYERS}.moe"
_TRITON = f"{_MOE}.moe_runner.triton_utils"
_CONFIG = f"{_TRITON}.fused_moe_triton_config"
_TABLES = "SGLang cannot be asked: rayprep's tables stand in, and what they do not know is left to the server"
_NO_TUNING = "`moe_tune` fails: the server takes SGLang's own configs"
_GROUPS = (
    *("backend", "dist_init_method", "server_args", "model_config", "gpu_id", "tp_rank", "pp_rank"),
    *("tp_size", "pp_size", "attn_dp_size", "attn_cp_size", "moe_ep_size", "moe_dp_size", "dcp_size"),
)
"""As `form_groups` of `inside/inventory.py` has them."""

_INVENTORY: tuple[Check, ...] = (
    Calls(f"{_SRT}.server_args", "prepare_server_args", 1),
    Calls(f"{_SRT}.configs.model_config", "ModelConfig.from_server_args"),
    Calls(f"{_SRT}.configs.load_config", "LoadConfig", 0, ("load_format",)),
    Calls(f"{_SRT}.model_loader.loader", "_get_quantization_config", 2),
    Calls(f"{_SRT}.model_loader.loader", "_initialize_model", 3),
    Calls(f"{_SRT}.model_loader.utils", "set_default_torch_dtype", 1),
    Calls(f"{_SRT}.distributed.parallel_state", "set_custom_all_reduce", 1),
    *(Calls(f"{_SRT}.distributed.parallel_state", f"get_{name}_group", 0) for name in ("tp", "pp", "moe_ep")),
    Wants(f"{_SRT}.distributed.bootstrap", "_init_parallel_groups", _GROUPS),
    Wants(f"{_LAYERS}.moe", "initialize_moe_config", ("server_args",)),
    Wants(f"{_LAYERS}.quantization.fp8_utils", "initialize_fp8_gemm_config", ("server_args",)),
    Wants(f"{_LAYERS}.quantization.fp4_utils", "initialize_fp4_gemm_config", ("server_args",)),
    Wants(f"{_LAYERS}.deep_gemm_wrapper.compile_utils", "update_deep_gemm_config", ("gpu_id", "server_args")),
    Calls(_CONFIG, "get_config_file_name", 5, ("down_moe",)),
    Calls(f"{_LAYERS}.deep_gemm_wrapper.compile_utils", "_BUILTIN_M_LIST"),
    Calls(f"{_LAYERS}.deep_gemm_wrapper.configurer", "ENABLE_JIT_DEEPGEMM"),
    Calls(f"{_LAYERS}.linear", "LinearBase"),
    Calls(f"{_MOE}.fused_moe_triton.layer", "FusedMoE"),
    Calls(f"{_LAYERS}.radix_attention", "RadixAttention"),
    *(
        Named("attribute", name, ("sglang/srt/layers/radix_attention.py",))
        for name in ("tp_q_head_num", "tp_k_head_num", "qk_head_dim", "v_head_dim", "sliding_window_size", "logit_cap")
    ),
    *(
        Named("attribute", name, ("sglang/srt/layers/moe/fused_moe_triton/layer.py",))
        for name in ("num_experts", "num_local_experts", "num_fused_shared_experts", "top_k", "moe_runner_config")
    ),
    *(
        Named("attribute", name, ("sglang/srt/layers/moe/moe_runner/*.py",))
        for name in ("is_gated", "activation", "runner_backend")
    ),
    *(
        Named("attribute", name, ("sglang/srt/layers/*.py",))
        for name in (
            *("quant_method", "quant_config", "scheme", "runner", "block_quant", "weight_block_size"),
            *_WEIGHTS,
        )
    ),
    *(
        Named("attribute", name, ("sglang/srt/layers/quantization/*.py",))
        for name in ("w8a8_block_fp8_linear", "w13_weight", "w2_weight", "w13_weight_scale", "kv_cache_quant_algo")
    ),
    *(
        Named("attribute", name, ("sglang/srt/configs/model_config.py",))
        for name in (*_LATENT, "attention_arch", "MLA", "hf_config", "dtype")
    ),
)
"""What `inside/inventory.py` imports, calls and reads."""
_TUNER = (
    Calls(_SGLANG_KERNELS, "FusedMoE"),
    Calls(f"{_MOE}.moe_runner", "MoeRunnerConfig", 0, ("num_experts", "num_local_experts", "inplace")),
    Calls(_TRITON, "override_config", 1),
    Calls(
        f"{_TRITON}.fused_moe",
        "fused_moe",
        4,
        ("moe_runner_config", "use_fp8_w8a8", "per_channel_quant", "w1_scale", "w2_scale", "block_shape"),
    ),
    Calls(f"{_MOE}.topk", "StandardTopKOutput", 3),
    Calls(f"{_SRT}.server_args", "ServerArgs"),
    Calls(f"{_SRT}.server_args", "set_global_server_args_for_scheduler", 1),
    Calls(_CONFIG, "get_moe_configs", 6, ("down_moe",)),
    Calls(_CONFIG, "try_get_optimal_moe_config", 5, ("block_shape", "per_channel_quant", "return_down_config")),
)
"""What `inside/fused_moe.py` and `inside/moe_layer.py` import and call."""
_FILES = ("sglang/srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py",)
_QUANTIZATION = ("sglang/srt/layers/quantization/*.py",)
_BEFORE = ("CompressedTensorsW8A8Fp8MoEMethod",)
"""Names of releases before those that are known."""
_MODELS = ("sglang/srt/models/*.py",)
FUSED = (f"{_SRT}.arg_groups.overrides", "_FLASHINFER_ALLREDUCE_FUSION_ARCHS")
"""The models for which SGLang fuses all-reduce and norm by itself."""
_UNKNOWN_MODEL = "the tables' row for it is of no use; SGLang is asked all the same"

FUNCTIONS: tuple[Contract, ...] = (
    *rows("no server starts", File("sglang/launch_server.py")),
    *rows(_TABLES, *_INVENTORY, *(Named("setting", name, ARGUMENTS) for name in _SETTINGS)),
    *rows(_TABLES, Calls(f"{_SRT}.runtime_context", "publish", 1, ("role",)), since="0.5.17"),
    *rows(_TABLES, Calls(f"{_SRT}.runtime_context", "SpawnRanks", 0, ("world_rank", "gpu_id")), since="0.5.21"),
    *rows(_TABLES, Calls(f"{_SRT}.server_args", "ServerArgs.resolved_dict", 0), since="0.5.19"),
    *rows(_TABLES, Calls(f"{_SRT}.server_args", "ServerArgs.resolve_once", 0), since="0.5.19"),
    *rows(_TABLES, Calls(f"{_SRT}.distributed.bootstrap", "init_layer_runtime", 0, ("model_config",)), since="0.5.21"),
    *rows(_NO_TUNING, *_TUNER),
    *rows(
        "the tuner's kernels are compiled one after another, in the process that measures",
        Named("function", "fused_moe_kernel", ("sglang/*/fused_moe_triton_kernels.py",)),
    ),
    *rows(
        "SGLang's own configs are not beside a tuned one, and it is not found where it is put",
        File("sglang/srt/layers/moe/moe_runner/triton_utils/configs/triton_*/*.json"),
        Named("folder", "configs", _FILES),
        Says(re.compile(r"^triton_\d$"), _FILES),
    ),
    *rows(
        "its kernels are not listed ahead: the server compiles them, one after another",
        *(Named("kind of product", kind, ("sglang/srt/layers/deep_gemm_wrapper/*.py",)) for kind in sorted(KINDS)),
        Named(
            "function", "deepgemm_w8a8_block_fp8_linear_with_fallback", ("sglang/srt/layers/quantization/fp8_utils.py",)
        ),
    ),
    *rows(
        "its experts are not tuned: SGLang's own configs are taken",
        *(Named("class", name, _QUANTIZATION) for name in (*_PLAIN, *_FP8) if name not in _BEFORE),
    ),
    *rows(
        "nothing: it has another name",
        *(Named("class", name, _QUANTIZATION) for name in _BEFORE),
        until="0.5.15",
        replaced=True,
    ),
    *rows(
        _UNKNOWN_MODEL,
        *(Named("model", name, _MODELS) for name in sorted({*FAMILIES, *_DENSE, *_QWEN_MOE, *_DEEPSEEK})),
    ),
    *rows(
        "without an inventory a module of FlashInfer's is built for nothing",
        *(Item(*FUSED, name) for name in sorted(_FUSED_ALL_REDUCE)),
    ),
)
