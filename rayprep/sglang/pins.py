"""Pins of each release of SGLang, of the libraries that it compiles with: one set for each, and no mixing.

Source: the METADATA of sglang's wheels, and for triton those of the torch that they pin.
"""

from collections.abc import Mapping

from rayprep.sglang.releases import KNOWN

LIBRARIES = ("torch", "triton", "flashinfer-python", "sgl-deep-gemm", "sglang-kernel", "transformers")
"""Distributions, in the order of the rows."""
_ROWS = (
    "2.11.0  3.6.0  0.6.14        0.1.4.post1  0.4.5        5.12.1",
    "2.11.0  3.6.0  0.6.15.post1  0.1.5.post1  0.4.5        5.12.1",
    "2.13.0  3.7.1  0.6.17        0.1.5.post3  0.4.6.post1  5.12.1",
    "2.13.0  3.7.1  0.6.18        0.1.7        0.4.6.post1  5.12.1",
    "2.13.0  3.7.1  0.6.18        0.2.0        0.4.7        5.12.1",
    "2.13.0  3.7.1  0.6.18        0.2.0        0.4.7        5.12.1",
    "2.14.1  3.8.*  0.7.1         0.2.2        0.4.9        5.19.0",
    "2.14.1  3.8.*  0.7.2         0.2.3.post2  0.4.10       5.19.0",
)
PINS: Mapping[str, Mapping[str, str]] = {
    release: dict(zip(LIBRARIES, row.split(), strict=True)) for release, row in zip(KNOWN, _ROWS, strict=True)
}
"""sglang's version -> distribution -> version, of which `.*` at the end leaves the rest open."""
CUDA = "13.0"
"""What nvcc and the headers that are installed as packages must be of: all of these torches need its runtime."""


def fits(version: str, pin: str) -> bool:
    """Tell whether a version without its local part is the pinned one."""
    return version == pin or (pin.endswith(".*") and f"{version}.".startswith(pin[:-1]))


def requirement(library: str, pin: str) -> str:
    """Return what a shell hands to pip: `torch==2.11.0`, or in quotes `'triton==3.8.*'`."""
    text = f"{library}=={pin}"
    return f"'{text}'" if "*" in text else text
