"""The kernel libraries' own functions, and their files on the disk: what the stages build by."""

import json
from collections.abc import Iterator, Mapping
from functools import cache

from rayprep.sglang.architecture import Architecture, parse_architecture
from rayprep.sglang.flashinfer_modules import NEWER_GENERATORS, FlashInferModule, flashinfer_modules
from rayprep.sglang.jit_functions import PDL
from rayprep.sglang.jit_modules import jit_modules
from rayprep.sglang.releases import KNOWN, NEWEST, Since
from rayprep.stages.deep_gemm.cache import COMMITTED, CUBIN, META, SOURCE
from scripts.upstream.checks import AnyOf, Calls, Check, File, Holds, Named, Without
from scripts.upstream.contract import DEEP_GEMM, DEEP_JIT_SINCE, FLASHINFER, Contract, rows

_C = ("deep_gemm/_C.so",)
_DISK, _COMPILER = (f"deep_gemm/include/deep_jit/{name}.hpp" for name in ("cache/disk", "backend/cuda/backend"))
_JIT_CACHE = ("sglang/kernels/jit/utils/compile/*.py",)
_ENV, _CPP, _CORE = ("flashinfer/jit/env.py",), ("flashinfer/jit/cpp_ext.py",), ("flashinfer/jit/core.py",)
_TO_THE_SERVER = "the module is left to the server, which compiles it when it first needs it"
_NO_MODULES = "the `flashinfer` stage fails as `unsupported`; with --skip flashinfer the server compiles its modules"
_NO_PRODUCTS = "the `deep_gemm` stage fails; with --skip deep_gemm the server compiles its kernels"
_UNLISTED = "no kernel is listed ahead: the `deep_gemm` stage fails; with --skip deep_gemm the server compiles them"
_PLAIN = {
    **{"num_hidden_layers": 2, "hidden_size": 1024, "intermediate_size": 2048, "vocab_size": 32000},
    **{"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "torch_dtype": "bfloat16"},
    **{
        "max_position_embeddings": 4096,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
}
_LATENT = {
    **{"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    **{"n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 256, "num_attention_heads": 128},
}
_FLAGS = ("--attention-backend=flashinfer", "--enable-flashinfer-allreduce-fusion")
_REQUESTS: tuple[tuple[dict[str, object], int, tuple[str, ...]], ...] = (
    ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, 1, ()),
    ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2}, 2, ()),
    (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        2,
        ("--flashinfer-allreduce-fusion-backend=mnnvl",),
    ),
    ({"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], **_LATENT}, 1, ()),
)
"""Models and flags that lead to every module of rayprep's."""


@cache
def _architecture(index: int) -> Architecture:
    config: Mapping[str, object] = {**_PLAIN, **_REQUESTS[index][0]}
    return parse_architecture(json.dumps(config), "a model made up")


def _jit_calls(version: str) -> Iterator[Check]:
    """Yield each function that compiles one of SGLang's own modules, as the child calls it, and what it calls first."""
    for index, (_, tp, flags) in enumerate(_REQUESTS):
        for module in jit_modules(_architecture(index), tp, flags, version):
            yield Calls(module.module, module.function, len(module.args))
            if PDL in module.args:
                yield Calls(module.module, "is_arch_support_pdl", 0)


def _jit_rows() -> Iterator[Contract]:
    """Yield a row for each call, from the first release that rayprep makes it with to the last."""
    releases: dict[Check, list[str]] = {}
    for version in KNOWN:
        for check in dict.fromkeys(_jit_calls(version)):
            releases.setdefault(check, []).append(version)
    for check, (first, *others) in releases.items():
        last = [first, *others][-1]
        begin, end = (None if first == KNOWN[0] else first), (None if last == NEWEST else last)
        yield from rows(_TO_THE_SERVER, check, since=begin, until=end, replaced=end is not None)


def _modules() -> Iterator[FlashInferModule]:
    for index, (_, tp, flags) in enumerate(_REQUESTS):
        yield from flashinfer_modules(_architecture(index), tp, (*_FLAGS, *flags))


def _generators() -> Iterator[Check]:
    """Yield each generator of FlashInfer's, as the child calls it."""
    for module in _modules():
        own = f"flashinfer.jit.{module.generator.removeprefix('gen_').removesuffix('_module')}"
        yield AnyOf(tuple(Calls(place, module.generator, len(module.args)) for place in ("flashinfer.jit", own)))


def _newer_generators() -> Iterator[Check]:
    """Yield those that the child calls instead where they are."""
    for module in _modules():
        yield from (Calls(NEWER_GENERATORS, name, len(module.args)) for name in module.newer)


def _once(checks: Iterator[Check]) -> tuple[Check, ...]:
    """Each function once, however many models lead to it."""
    return tuple({str(check): check for check in checks}.values())


KERNELS: tuple[Contract, ...] = (
    *_jit_rows(),
    *rows(
        "no cache is blamed for what SGLang's own modules raise",
        File("sglang/jit_kernel/*.py"),
        until="0.5.16",
        replaced=True,
    ),
    *rows(
        "no cache is blamed for what SGLang's own modules raise",
        File("sglang/kernels/jit/*.py"),
        since=Since.KERNELS_PACKAGE,
    ),
    *rows(
        "all of SGLang's own modules are one entry of their cache, which is removed as a whole",
        Holds("__arch_", ("sglang/jit_kernel/utils/compile.py", "sglang/kernels/jit/utils/*.py")),
        until="0.5.17",
        replaced=True,
    ),
    *rows(
        "a build of one of SGLang's own modules is not told from the others: all of an architecture's are one entry",
        *(Holds(f'"{name}"', _JIT_CACHE) for name in ("build-", "deps-")),
        since="0.5.18",
    ),
    *rows(
        "what a killed build of SGLang's own modules left counts as built",
        Holds(".staging-", _JIT_CACHE),
        since="0.5.18",
    ),
    *rows(_NO_MODULES, *_once(_generators()), package=FLASHINFER),
    *rows(
        "FA2's module for prefill is built for nothing, and the one that is loaded is left to the server",
        Without("_gen_batch_prefill_primary_module", ("flashinfer/prefill.py",)),
        package=FLASHINFER,
        until="0.5.21",
        replaced=True,
    ),
    *rows(
        "FA2's module for prefill is built for nothing, and the one that is loaded is left to the server",
        *_once(_newer_generators()),
        package=FLASHINFER,
        since="0.5.22",
    ),
    *rows(
        "FA3's module is built for nothing where FA3 does not have the widths",
        Calls("flashinfer.utils", "is_fa3_prefill_head_dim_supported", 2),
        package=FLASHINFER,
        since="0.5.17",
    ),
    *rows(
        _NO_MODULES,
        *(Named("attribute", name, _CORE) for name in ("name", "is_aot", "build_dir", "jit_library_path")),
        AnyOf(
            tuple(
                Calls("flashinfer.jit.core", f"{name}.build", 0, ("verbose", "need_lock"))
                for name in ("JitSpec", "JitSpecNvcc")
            )
        ),
        package=FLASHINFER,
    ),
    *rows(
        "whether a module has work left may be answered wrongly: `verify_failed`, or the proof finds it",
        *(Named("argument of ninja", name, _CPP) for name in ("ninja", "-v", "-C", "-f")),
        package=FLASHINFER,
    ),
    *rows(
        "FlashInfer's files are not told by module, and entries are not removed one by one",
        *(Named("folder", name, _ENV) for name in (".cache", "flashinfer", "cached_ops", "generated")),
        package=FLASHINFER,
    ),
    *rows(
        _NO_PRODUCTS,
        Calls("deep_gemm", "fp8_gemm_nt"),
        Calls("deep_gemm", "bf16_gemm_nt", 3),
        Calls("deep_gemm", "m_grouped_fp8_gemm_nt_contiguous"),
        Calls("deep_gemm", "m_grouped_bf16_gemm_nt_contiguous", 4),
        Calls("deep_gemm", "fp8_m_grouped_gemm_nt_masked"),
        Calls("deep_gemm", "m_grouped_bf16_gemm_nt_masked", 3, ("masked_m", "expected_m")),
        Calls("deep_gemm", "get_mk_alignment_for_contiguous_layout"),
        package=DEEP_GEMM,
    ),
    *rows(
        "DeepGEMM's entries are not told from half-written ones, and are removed before a build",
        *(Holds(name, _C) for name in (SOURCE, CUBIN)),
        package=DEEP_GEMM,
    ),
    *rows(
        "DeepGEMM's entries are not told from half-written ones, and are removed before a build",
        Holds(f'kCommitFileName = "{COMMITTED}"', (_DISK,)),
        Holds(f'dir / "{META}"', (_COMPILER,)),
        package=DEEP_GEMM,
        since=DEEP_JIT_SINCE,
    ),
    *rows(
        "kernels are not told from what only changes a layout: all are compiled while they are listed",
        File("deep_gemm/include/deep_gemm/impls/*gemm*.cuh"),
        package=DEEP_GEMM,
    ),
    *rows(
        _UNLISTED,
        Holds("-cubin -o", _C),
        package=DEEP_GEMM,
        until="0.5.19",
        replaced=True,
    ),
    *rows(
        _UNLISTED,
        *(Holds(f'"{name}"', (_COMPILER,)) for name in ("--cubin", "--output-file")),
        package=DEEP_GEMM,
        since=DEEP_JIT_SINCE,
    ),
)
