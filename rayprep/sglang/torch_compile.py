"""SGLang's torch.compile: whether a server's flags ask for it, up to which batch, and the same flags without it.

Source: sglang 0.5.16, `srt/compilation/torch_compile_decoration.py` and `srt/model_executor/runner/`: the decode step
is compiled for each batch size that decode captures a CUDA graph for, up to `--torch-compile-max-bs` (32).
"""

from collections.abc import Sequence

from rayprep.sglang.flags import ServerFlags, full_name

ENABLE = "--enable-torch-compile"
_MAX_BATCH = "--torch-compile-max-bs"
_ENABLE, _LARGEST = "enable_torch_compile", "torch_compile_max_bs"
_ALL_OF_IT = (_ENABLE, "torch_compile")
_NO_GRAPHS = frozenset({"disable_cuda_graph", "disable_decode_cuda_graph"})
_BACKEND = "cuda_graph_backend_decode"


def asks(server_args: Sequence[str]) -> bool:
    """Whether a server with these flags compiles the model's decode step."""
    return _ENABLE in ServerFlags(server_args)


def captures_decode(server_args: Sequence[str]) -> bool:
    """Whether it captures decode at all: without CUDA graphs nothing is compiled, whatever is asked."""
    flags = ServerFlags(server_args)
    return _NO_GRAPHS.isdisjoint(flags) and flags.get(_BACKEND) != "disabled"


def max_batch(server_args: Sequence[str]) -> int | None:
    """The largest batch that the flags have compiled; None where they leave it to SGLang."""
    largest = ServerFlags(server_args).number(_LARGEST)
    return largest if largest is None or largest >= 0 else None


def with_max_batch(server_args: Sequence[str], largest: int) -> tuple[str, ...]:
    """The flags with a largest batch, where they do not name one themselves."""
    return tuple(server_args) if max_batch(server_args) is not None else (*server_args, _MAX_BATCH, str(largest))


def without(server_args: Sequence[str]) -> tuple[str, ...]:
    """The flags without torch.compile and all that belongs to it."""
    kept: list[str] = []
    dropping = False
    for word in server_args:
        if word.startswith("--"):
            dropping = full_name(word.partition("=")[0]).startswith(_ALL_OF_IT)
        if not dropping:
            kept.append(word)
    return tuple(kept)
