"""SGLang's own arguments: which of them rayprep refuses, and which are part of a cache's identity.

Source of the names: `python -m sglang.launch_server --help`, sglang 0.5.16.
"""

from rayprep.model.errors import BadRequest
from rayprep.model.secrets import is_secret_flag, redacted_flags

_LAYOUTS = {
    name: words
    for words, names in {
        "data parallel": (
            *("dp", "dp_size", "data_parallel_size", "moe_dp_size", "moe_data_parallel_size"),
            *("enable_dp_attention", "enable_dp_lm_head"),
        ),
        "expert parallel": ("ep", "ep_size", "expert_parallel_size", "enable_eplb", "moe_a2a_backend"),
        "pipeline parallel": ("pp", "pp_size", "pipeline_parallel_size"),
        "context parallel": (
            *("attn_cp_size", "attention_context_parallel_size", "dcp_size", "decode_context_parallel_size"),
            *("enable_prefill_cp", "enable_prefill_context_parallel"),
            *("enable_dsa_prefill_context_parallel", "enable_nsa_prefill_context_parallel"),
        ),
        "several nodes for one server": ("nnodes", "node_rank", "dist_init_addr", "nccl_init_addr"),
    }.items()
    for name in names
}
_TP = frozenset({"tp", "tp_size", "tensor_parallel_size"})
_OURS = frozenset({"model", "model_path", "port", "host"})
_WITHOUT_KERNELS = frozenset(
    {
        *("log_level", "log_level_http", "log_requests", "log_requests_level", "decode_log_interval", "show_time_cost"),
        *("enable_metrics", "enable_trace", "otlp_traces_endpoint", "api_key", "admin_api_key", "served_model_name"),
        *("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_keyfile_password", "enable_ssl_refresh"),
        *("watchdog_timeout", "load_format", "skip_tokenizer_init", "tp", "tp_size", "tensor_parallel_size"),
    }
)
"""Flags that change nothing about which kernels are compiled. Whatever is not named here is taken to."""


def refuse_layout(name: str, value: object) -> None:
    """Raises BadRequest when `name`, in any spelling, asks for a parallel layout other than TP. 1 and false pass."""
    words = _LAYOUTS.get(_plain(name))
    if words is None or not _asks_for_more(value):
        return
    raise BadRequest(
        f"{words} ({name}={value}) is not supported: rayprep prepares tensor-parallel servers only",
        hint=f"leave {name} out, or set it to 1",
    )


def _asks_for_more(value: object) -> bool:
    if isinstance(value, bool) or value is None:  # first, because True equals 1
        return bool(value)
    return value not in (0, 1) and str(value).lower() not in ("0", "1", "false", "none")


def check_server_args(server_args: tuple[str, ...], tp: int) -> None:
    """Refuses arguments that ask for another layout, or for what rayprep itself decides.

    Raises:
        BadRequest: with the argument's name.
    """
    for name, value in pairs(server_args):
        meant = _unabbreviated(_plain(name))
        # A flag without a value, such as --enable-dp-attention, is a yes.
        refuse_layout(meant, True if value == "" else value)
        if meant in _OURS:
            raise BadRequest(f"--server-arg {name} is rayprep's own to set", hint="use rayprep's flag for it")
        if meant in _TP and value != str(tp):
            raise BadRequest(f"--server-arg {name} {value} contradicts --tp {tp}", hint="give --tp alone")


def _unabbreviated(name: str) -> str:
    """The flag that argparse would take `name` for: it accepts the beginning of any of SGLang's flags."""
    known = (*_LAYOUTS, *_TP, *_OURS)
    return name if name in known else next((each for each in known if name and each.startswith(name)), name)


def pairs(server_args: tuple[str, ...]) -> list[tuple[str, str]]:
    """Flags with their values as argparse joins them: `--a 1`, `--a=1` and `--a` give `1`, `1` and ``."""
    found: list[tuple[str, str]] = []
    for word in server_args:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found.append((name, value))
        elif found:
            name, value = found[-1]
            found[-1] = (name, f"{value} {word}".strip())
        else:
            raise BadRequest(f"--server-arg {word!r} belongs to no flag", hint="write --server-arg=--flag=value")
    return found


def kernel_flags(server_args: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments that belong to a cache's identity, `name=value` each, sorted by name; never a secret.

    One that is given twice keeps its order, since the last one is what SGLang takes.
    """
    open_ones = [(_plain(name), value) for name, value in pairs(server_args) if not is_secret_flag(name)]
    named = sorted(open_ones, key=lambda pair: pair[0])
    return redacted_flags(f"{name}={value}" for name, value in named if name not in _WITHOUT_KERNELS)


def redacted(server_args: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments as they may be written down: `--flag=value` each, keys blotted out."""
    return redacted_flags(f"{name}={value}" if value else name for name, value in pairs(server_args))


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")
