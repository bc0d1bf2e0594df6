"""Which release of SGLang is meant, and what is so from one release on."""

import re

READ = "0.5.16"
"""The release that the tables of this folder were read in."""


def since(version: str | None, first: str) -> bool:
    """Tell whether `version` is `first` or a later one; a version that is not known is taken for READ."""
    return _numbers(version or READ) >= _numbers(first)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release's numbers, less what a pre-release or a local version adds: (0, 5, 16)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(int(number) for number in match[1].split(".")) if match else ()
