"""Flags of SGLang's server that rayprep passes, or decides by."""

from rayprep.base.otlp import OtlpEndpoint
from rayprep.sglang import flags, moe_shape, torch_compile
from rayprep.sglang.command import ServerSettings, server_command
from rayprep.sglang.flag_names import ALIASES, NAMES
from rayprep.sglang.flags import full_name, pairs
from rayprep.stages.deep_gemm import by_server
from scripts.upstream.checks import Flag
from scripts.upstream.contract import Contract, rows

_UNTIL = {
    "cuda_graph_max_bs": "0.5.19",
    "enable_dsa_prefill_context_parallel": "0.5.19",
    "enable_nsa_prefill_context_parallel": "0.5.19",
    "enable_prefill_context_parallel": "0.5.19",
}
"""Flags that later releases do not have; others, which are named too, do the same there."""
_SINCE = {
    "attention_data_parallel_size": "0.5.22",
    "attn_dp_size": "0.5.22",
    "dwdp_size": "0.5.17",
    "enable_kv_cache_sharding": "0.5.22",
}
_ASKED = (
    *("kv_cache_dtype", "moe_runner_backend", "quantization", "dtype", "chunked_prefill_size", "context_length"),
    *("attention_backend", "prefill_attention_backend", "decode_attention_backend", "sampling_backend"),
    *("speculative_eagle_topk", "flashinfer_mla_disable_ragged", "enable_deterministic_inference"),
    *("flashinfer_allreduce_fusion_backend", "enable_flashinfer_allreduce_fusion", "enable_two_batch_overlap"),
    *("enforce_disable_flashinfer_allreduce_fusion", "fp8_gemm_backend", "fp8_gemm_runner_backend"),
    *("disable_shared_experts_fusion", "enforce_shared_experts_fusion", "enable_single_batch_overlap"),
    *moe_shape._DECODE_FLAGS,
)
"""Names that the tables ask a server's flags for."""
_COMPILING = (torch_compile._ENABLE, torch_compile._LARGEST, torch_compile._BACKEND, *torch_compile._NO_GRAPHS)


def _passed() -> list[str]:
    """Return the flags of rayprep's own server, all of them."""
    tracing = OtlpEndpoint(protocol="grpc", address="localhost:4317")
    settings = ServerSettings(model_path="m", context_length=1, tracing=tracing)
    command = server_command(settings, port=1, mem_fraction=0.9, python="python")
    words = command[command.index("sglang.launch_server") + 1 :]
    return [full_name(name) for name, _ in pairs([*words, by_server._WITHOUT_GRAPHS])]


def _flags(then: str, *names: str) -> list[Contract]:
    """Return a row for each. The beginning of a flag's name stands for the flag; of several flags', for none."""
    whole = {name if name in ALIASES else full_name(name) for name in names} & {*NAMES, *ALIASES}
    ends = ((name, _SINCE.get(name), _UNTIL.get(name)) for name in sorted(whole))
    return [
        row
        for name, first, last in ends
        for row in rows(then, Flag(name), since=first, until=last, replaced=last is not None)
    ]


_ROWS = (
    *_flags("rayprep's own server does not start: its log says why", *_passed()),
    *_flags(
        "what `rayprep verify -- COMMAND` reads off a command says nothing of it",
        "model",
        "tensor_parallel_size",
    ),
    *_flags("a server with TLS is not refused, and never seen to be ready", "ssl_certfile", "ssl_keyfile"),
    *_flags("rayprep's tables decide as if it were not given; the server refuses it", *_ASKED),
    *_flags("the server refuses it", *_COMPILING),
    *_flags("the server refuses it, where rayprep has not", *flags._LAYOUTS, *flags._TP, *flags._OURS),
    *_flags("the server refuses it", *flags._WITHOUT_KERNELS),
)
FLAGS: tuple[Contract, ...] = tuple({row.id: row for row in reversed(_ROWS)}.values())
"""A flag that is asked for in several ways stands once, with the first reason."""
