"""Text that is not ours, made safe to show: file names, paths, hosts' names, what compilers and the OS say. Pure.

`str.isprintable` decides what prints: no control, no format character such as a bidirectional override, no separator
but the blank, no half of a surrogate pair, nothing private or unassigned. A terminal obeys some of these, and an eye
misses the others.
"""


def printable(text: str) -> str:
    r"""Writes out whatever does not print, so that one line stays one line: `\n`, `\x1b`, `\u202e`.

    A byte of a file's name that is not UTF-8, which Python keeps as half a surrogate pair (PEP 383), becomes `\xff`.
    """
    return text if text.isprintable() else "".join(char if char.isprintable() else _written_out(char) for char in text)


def one_line(text: str, most: int | None = None) -> str:
    """Join a message's lines with blanks, and write out whatever else does not print; `most` characters at most."""
    return printable(" ".join(text.split())[:most])


def printable_json(text: str, encoding: str = "utf-8") -> str:
    """Escapes whatever does not print in JSON text, or is not in `encoding`; its value and its line breaks stay.

    JSON itself escapes the controls below U+0020 alone (RFC 8259, section 7).
    """
    return "\n".join(_printable_json_line(line, encoding) for line in text.split("\n"))


def _printable_json_line(line: str, encoding: str) -> str:
    if _shows(line, encoding):
        return line
    return "".join(char if _shows(char, encoding) else _json_escape(char) for char in line)


def _shows(text: str, encoding: str) -> bool:
    if not text.isprintable():
        return False
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _written_out(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def _json_escape(char: str) -> str:
    r"""`\u202e`, or two of these for what lies beyond U+FFFF."""
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
