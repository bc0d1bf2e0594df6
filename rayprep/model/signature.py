"""What decides whether an artifact made there works here, and which of it binds which stage."""

import hashlib
import json
from typing import Literal

from rayprep.base.records import Record
from rayprep.model.stages import StageName

FORMAT_VERSION = "1"
"""Of rayprep's own files: a completion of another format is built again, never guessed at."""


class Signature(Record):
    """One host as a builder of kernels. A field is null where the host does not have the thing."""

    model_slug: str | None = None
    tp_size: int | None = None
    device_name: str
    compute_capability: str | None = None
    """`sm_90` and so on; null on a host without a GPU."""
    sm_count: int | None = None
    gpu_count: int = 0
    cpu_arch: str
    cpu_isa: str
    """The widest vector set that TorchInductor would compile for, e.g. `avx512`."""
    libc: str
    python: str
    """Major and minor, `3.12`."""
    cxx: str | None = None
    driver_version: str | None = None
    cuda: str | None = None
    """The CUDA version that torch was built for, or the driver's where torch is not installed."""
    nvcc: str | None = None
    torch_version: str | None = None
    triton_version: str | None = None
    transformers_version: str | None = None
    flashinfer_version: str | None = None
    deep_gemm_version: str | None = None
    sglang_version: str | None = None
    sglang_commit: str | None = None
    """Null for a wheel."""
    install_prefix: str
    profiles_root: str
    format_version: str = FORMAT_VERSION


Field = Literal[
    "device_name",
    "compute_capability",
    "sm_count",
    "cpu_arch",
    "cpu_isa",
    "libc",
    "python",
    "cxx",
    "cuda",
    "nvcc",
    "torch_version",
    "triton_version",
    "flashinfer_version",
    "deep_gemm_version",
    "sglang_version",
    "install_prefix",
    "profiles_root",
    "format_version",
]

_ALWAYS: dict[Field, str] = {
    "compute_capability": "a kernel is compiled for one GPU architecture, or for none",
    "format_version": "another rayprep may mean other things by the same file",
}
_HOST_CODE: dict[Field, str] = {
    "cpu_arch": "the artifacts hold shared objects",
    "libc": "a shared object needs a libc at least as new as its builder's",
    "python": "an extension module is built for one Python",
    "cxx": "the compiler's version is part of what the library hashes, or of the code it makes",
    "torch_version": "the artifacts link against torch's C++ ABI",
}

BINDING: dict[StageName, dict[Field, str]] = {
    StageName.DEEP_GEMM: {
        **_ALWAYS,
        "sm_count": "a template argument of every kernel",
        "nvcc": "part of the key that DeepGEMM looks up",
        "deep_gemm_version": "its headers are part of the key",
        "install_prefix": "the include path is part of the key (DeepGEMM 0.1)",
    },
    StageName.MOE_TUNE: {
        **_ALWAYS,
        "device_name": "part of the config's file name",
        "triton_version": "part of the config's folder name, and of every Triton key",
        "torch_version": "Triton's launchers link against it",
        "sglang_version": "its kernels are what was tuned",
        "profiles_root": "Triton's group files hold absolute paths, and a child not found there is skipped",
    },
    StageName.FLASHINFER: {
        **_ALWAYS,
        **_HOST_CODE,
        "cuda": "the modules link against the CUDA runtime",
        "nvcc": "ninja rebuilds on another compiler",
        "flashinfer_version": "part of the cache's path",
        "install_prefix": "build.ninja holds absolute include paths",
        "profiles_root": "build.ninja holds absolute output paths",
    },
    StageName.INDUCTOR: {
        **_ALWAYS,
        **_HOST_CODE,
        "device_name": "Inductor's cache key holds the device's properties",
        "install_prefix": "torch's include path is in the key of every compiled library",
        "cpu_isa": "vectorised C++ is compiled for one instruction set",
        "cuda": "part of Inductor's cache key",
        "triton_version": "part of Inductor's cache key",
    },
    StageName.SERVE: {
        **_ALWAYS,
        **_HOST_CODE,
        "device_name": "Inductor's cache key holds the device's properties",
        "cuda": "SGLang's modules link against the CUDA runtime",
        "nvcc": "ninja rebuilds SGLang's modules on another compiler",
        "triton_version": "part of every Triton key",
        "sglang_version": "its kernels are what was compiled",
        "install_prefix": "ninja's files and Inductor's keys hold absolute include paths",
        "profiles_root": "Triton's group files and ninja's hold absolute paths",
    },
}
"""Per stage the fields that must be equal, each with the reason. The driver's patch level binds nothing: a cubin
runs on any driver of its CUDA major. Names of hosts, slugs and TP are in the key, not here."""


class Difference(Record):
    """One field in which two hosts, or a host and a completion, differ."""

    field: str
    then: str | int | None
    now: str | int | None
    why: str

    def __str__(self) -> str:
        return f"{self.field} was {self.then}, is {self.now}"


def differences(stage: StageName, then: Signature, now: Signature) -> tuple[Difference, ...]:
    """The binding fields of `stage` in which `then` and `now` differ.

    A host without nvcc can use what any nvcc made: it has none that could build it again.
    """
    return tuple(
        Difference(field=field, then=getattr(then, field), now=getattr(now, field), why=why)
        for field, why in BINDING[stage].items()
        if getattr(then, field) != getattr(now, field) and not (field == "nvcc" and now.nvcc is None)
    )


_ANSWERS: tuple[Field, ...] = (
    *("device_name", "compute_capability", "torch_version", "triton_version"),
    *("flashinfer_version", "deep_gemm_version", "sglang_version"),
)


def answer_kind(signature: Signature) -> str:
    """The same for two hosts whose SGLang says the same of a server. SGLang asks for all that is named in it."""
    fields = [getattr(signature, field) for field in _ANSWERS]
    return json.dumps([*fields, signature.transformers_version, signature.sglang_commit])


def binding_digest(stage: StageName, signature: Signature) -> str:
    """SHA-256, in hex, of the fields that bind `stage`: equal for two hosts whose artifacts are interchangeable."""
    bound = {field: getattr(signature, field) for field in BINDING[stage]}
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()
