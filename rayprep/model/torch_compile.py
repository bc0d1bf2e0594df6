"""SGLang's torch.compile: whether a server's flags ask for it, up to which batch, and the same flags without it.

Source: sglang 0.5.16, `srt/compilation/torch_compile_decoration.py` and `srt/model_executor/runner/`: the decode step
is compiled for each batch size that decode captures a CUDA graph for, up to `--torch-compile-max-bs` (32).
"""

from collections.abc import Sequence

from rayprep.model.server_args import pairs

ENABLE = "--enable-torch-compile"
_MAX_BATCH = "--torch-compile-max-bs"
_PREFIX = _MAX_BATCH[: len("--torch-compile")]
_NO_GRAPHS = frozenset({"--disable-cuda-graph", "--disable-decode-cuda-graph"})
_BACKEND = "--cuda-graph-backend-decode"


def asks(server_args: Sequence[str]) -> bool:
    """Whether a server with these flags compiles the model's decode step."""
    return any(name == ENABLE for name, _ in _named(server_args))


def captures_decode(server_args: Sequence[str]) -> bool:
    """Whether it captures decode at all: without CUDA graphs nothing is compiled, whatever is asked."""
    named = _named(server_args)
    return not any(name in _NO_GRAPHS or (name, value) == (_BACKEND, "disabled") for name, value in named)


def max_batch(server_args: Sequence[str]) -> int | None:
    """The largest batch that the flags have compiled; None where they leave it to SGLang."""
    found = [value for name, value in _named(server_args) if name.startswith(_PREFIX) and value.isdecimal()]
    return int(found[-1]) if found else None


def with_max_batch(server_args: Sequence[str], largest: int) -> tuple[str, ...]:
    """The flags with a largest batch, where they do not name one themselves."""
    return tuple(server_args) if max_batch(server_args) is not None else (*server_args, _MAX_BATCH, str(largest))


def without(server_args: Sequence[str]) -> tuple[str, ...]:
    """The flags without torch.compile and all that belongs to it."""
    kept: list[str] = []
    dropping = False
    for word in server_args:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            dropping = name.startswith((ENABLE, _PREFIX))
        if not dropping:
            kept.append(word)
    return tuple(kept)


def _named(server_args: Sequence[str]) -> list[tuple[str, str]]:
    return [(name.replace("_", "-"), value) for name, value in pairs(tuple(server_args))]
