"""GPUs by the names that people and NVML have for them, and what compilers call their architecture.

Source: NVIDIA, "CUDA GPU Compute Capability", https://developer.nvidia.com/cuda-gpus.
"""

import re
from typing import NamedTuple

from rayprep.base.errors import BadRequest

_CAPABILITIES = {
    "sm_80": ("A100", "A800", "A30"),
    "sm_86": ("A10", "A40", "A6000"),
    "sm_89": ("L4", "L40", "L40S", "RTX 4090", "RTX 6000 Ada"),
    "sm_90": ("H100", "H200", "H800", "H20", "GH200"),
    "sm_100": ("B100", "B200", "GB200"),
    "sm_103": ("B300", "GB300"),
    "sm_120": ("RTX 5090", "RTX PRO 6000"),
    "sm_121": ("GB10",),
}
_ONE_OF = {"sm_90": "NVIDIA H200"}
"""A GPU to stand for an architecture whose others have another name in the files of SGLang."""


class GpuKind(NamedTuple):
    """A GPU's name, as NVML has it, and its compute capability, such as `sm_90`."""

    name: str
    capability: str
    named: bool = True
    """This GPU is meant; else any of its architecture."""

    def is_met_by(self, name: str, capability: str) -> bool:
        """Tell whether a GPU is of this kind. `H200` is no `NVIDIA H20`, and `NVIDIA GH200 480GB` is a `GH200`."""
        words = set(self.name.lower().split()) if self.named else set()
        return capability == self.capability and words <= set(name.lower().split())


def gpu_kind(text: str) -> GpuKind:
    """Read `NVIDIA H200`, `h200` or `sm_90`.

    Raises:
        BadRequest: no GPU is known by that name.
    """
    plain = text.strip()
    if re.fullmatch(r"sm_\d{2,3}", plain.lower()):
        return GpuKind(_ONE_OF.get(plain.lower(), plain.lower()), plain.lower(), named=False)
    words = re.split(r"[\s_-]+", plain.lower())
    for capability, names in _CAPABILITIES.items():
        for name in sorted(names, key=len, reverse=True):
            wanted = name.lower().split()
            if any(words[start : start + len(wanted)] == wanted for start in range(len(words))):
                return GpuKind(plain if len(words) > len(wanted) else f"NVIDIA {name}", capability)
    known = ", ".join(name for names in _CAPABILITIES.values() for name in names)
    raise BadRequest(f"--for {text!r} is no GPU that is known here", hint=f"say sm_90 or the like, or one of {known}")
