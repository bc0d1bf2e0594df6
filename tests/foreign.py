"""Names that somebody else has chosen, to move a terminal or to forge a line, and what may be left of them."""

import os
import re

NASTY = {
    "title": "\x1b]0;owned\x07",
    "colour": "\x1b[31mred",
    "bell": "a\x07b",
    "return": "good\rbad",
    "newline": "a\n[OPTIMIZE ensure] ok in 0.1 s",
    "tab": "a\tb",
    "c1": "a\x9b31mb",
    "next_line": "a\x85b",
    "override": "a\u202egpj.exe",
    "isolate": "a\u2066b\u2069",
    "separator": "a\u2028b\u2029c",
    "zero_width": "a\u200bb\ufeff",
    "delete": "a\x7fb",
    "byte": os.fsdecode(b"a\xffb"),
    "half": "a\ud83db",
    "private": "a\ue000b",
    "beyond": "a\U000e0001b",
}
UTF8 = {name: text for name, text in NASTY.items() if name not in ("byte", "half")}
"""Those that a JSON file can hold."""
ALL = "".join(UTF8.values())

# What rich draws with: colours, the cursor shown and hidden, a line up, a line emptied.
_DRAWN = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|1A|2K)")


def lines(output: bytes | str, *, drawn: bool = False) -> list[str]:
    """The lines of what was written, each proved to print.

    Args:
        drawn: a terminal got it, from rich.
    """
    text = output.decode() if isinstance(output, bytes) else output
    if drawn:
        text = _DRAWN.sub("", text).replace("\r", "")
    found = text.removesuffix("\n").split("\n")
    assert [line for line in found if not line.isprintable()] == []
    return found
