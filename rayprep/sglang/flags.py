"""SGLang's own arguments: parsed once, as its parser takes them, for whoever decides by them; which of them rayprep
refuses, and which are part of a cache's identity.

Source of the names: `python -m sglang.launch_server --help`, sglang 0.5.16 to 0.5.23.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from rayprep.base.errors import BadRequest
from rayprep.base.secrets import is_secret_flag, redacted_flags
from rayprep.sglang.architecture import Architecture
from rayprep.sglang.flag_names import ALIASES, NAMES

_DTYPES = {"half": "float16", "float": "float32"}
"""Other names that SGLang has for torch's types."""
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@lru_cache(maxsize=1024)
def full_name(name: str) -> str:
    """Return the name that SGLang's settings have for a flag: of an alias, and of an abbreviation.

    Args:
        name: in any spelling. One that is no flag's, or the beginning of several flags, is returned as it is.
    """
    plain = _plain(name)
    if plain in NAMES:
        return plain
    if plain in ALIASES:
        return ALIASES[plain]
    begun = {known for known in NAMES if known.startswith(plain)}
    begun |= {known for alias, known in ALIASES.items() if alias.startswith(plain)}
    return begun.pop() if plain and len(begun) == 1 else plain


class ServerFlags(Mapping[str, str]):
    """The flags of one server, by full name; a flag without a value has an empty one."""

    def __init__(self, server_args: Sequence[str]) -> None:
        """Raise BadRequest where a word belongs to no flag."""
        self._values = {full_name(name): value for name, value in pairs(server_args)}

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def number(self, name: str) -> int | None:
        """Return a flag's value as a number; None where it is not given, or is none."""
        value = self.get(name, "")
        return int(value) if _NUMBER.fullmatch(value) else None

    def dtype(self, architecture: Architecture) -> str:
        """Return the type that the model computes in, by torch's name.

        Source: `_get_and_verify_dtype` in sglang 0.5.16, `srt/configs/model_config.py`.
        """
        asked = self.get("dtype", "auto").lower()
        if asked != "auto":
            return _DTYPES.get(asked, asked)
        own = architecture.dtype.removeprefix("torch.")
        if own != "float32":
            return own
        return "bfloat16" if architecture.model_type.startswith("gemma") else "float16"


_LAYOUTS = {
    name: words
    for words, names in {
        "data parallel": (
            *("dp", "dp_size", "data_parallel_size", "moe_dp_size", "moe_data_parallel_size"),
            *("attn_dp_size", "attention_data_parallel_size", "dwdp_size", "enable_dp_attention", "enable_dp_lm_head"),
        ),
        "expert parallel": ("ep", "ep_size", "expert_parallel_size", "enable_eplb", "moe_a2a_backend"),
        "pipeline parallel": ("pp", "pp_size", "pipeline_parallel_size"),
        "context parallel": (
            *("attn_cp_size", "attention_context_parallel_size", "dcp_size", "decode_context_parallel_size"),
            *("enable_prefill_cp", "enable_prefill_context_parallel", "enable_kv_cache_sharding"),
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
    words = _LAYOUTS.get(_meant(name))
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
        meant = _meant(name)
        # A flag without a value, such as --enable-dp-attention, is a yes.
        given = _plain(name)
        refuse_layout(given if given in NAMES or given in ALIASES else meant, True if value == "" else value)
        if meant in _OURS:
            raise BadRequest(f"--server-arg {name} is rayprep's own to set", hint="use rayprep's flag for it")
        if meant in _TP and value != str(tp):
            raise BadRequest(f"--server-arg {name} {value} contradicts --tp {tp}", hint="give --tp alone")


def _meant(name: str) -> str:
    """Return the flag that a name stands for; one that is refused where it begins several."""
    full, known = full_name(name), (*_LAYOUTS, *_TP, *_OURS)
    return full if full in NAMES else next((flag for flag in known if full and flag.startswith(full)), full)


def pairs(server_args: Sequence[str]) -> list[tuple[str, str]]:
    """Return flags with their values as argparse joins them: `--a 1`, `--a=1` and `--a` give `1`, `1` and ``."""
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
