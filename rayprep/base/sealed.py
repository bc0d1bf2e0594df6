"""A checksum inside a JSON file, so that a damaged file is never read as if it said something else.

The last key of the object is `"checksum": "sha256:<64 hex digits>"`, over all bytes before the comma that precedes it:

    {"a": 1, "checksum": "sha256:d0d9..."}        covers    {"a": 1

It is verified on the raw bytes, before they are parsed: a bit that changed in a name makes a key both unknown and
missing, and a reader that ignores the one and has a default for the other would see nothing. It guards against damage,
and not against somebody who can write the file, and so the checksum too.
"""

import hashlib
import re

from pydantic import ConfigDict
from pydantic.config import JsonDict

from rayprep.base.records import R, Record, read_tolerant

_SEAL = re.compile(rb'\s*"checksum": ?"(sha256:[0-9a-f]{64})"\s*\}\s*')
"""All that may follow the last comma of a sealed text."""


class SealBroken(ValueError):
    """A text does not carry its own checksum; its message, of one line, says how."""


class Unsealed(SealBroken):
    """There is no checksum at the end."""


def seal(text: str) -> str:
    """Returns the text of a JSON object, on one line or indented, with its checksum as the last key.

    Raises:
        ValueError: the text does not end with an object that has a key.
    """
    body, brace, ending = text.rpartition("}")
    content = body.rstrip()
    if not brace or ending.strip() or content[-1:] in ("", "{", ","):
        raise ValueError("only the text of an object with a key can be sealed")
    before, colon, after = ("\n  ", ": ", "\n") if content != body else ("", ":", "")
    return f'{content},{before}"checksum"{colon}"{digest(content.encode())}"{after}}}{ending}'


def open_seal(data: bytes) -> bytes:
    """Returns the JSON object that was sealed, without its checksum.

    Raises:
        Unsealed: there is no checksum.
        SealBroken: the content is not what its checksum says.
    """
    end = data.rfind(b",")
    found = _SEAL.fullmatch(data, end + 1)
    if end < 0 or found is None:
        raise Unsealed("it has no checksum at its end")
    if (now := digest(memoryview(data)[:end])) != found[1].decode():
        raise SealBroken(f"its content is not what its checksum says: {now[:19]}..., not {found[1][:19].decode()}...")
    return data[:end] + b"}"


def open_if_sealed(data: bytes) -> bytes:
    """As `open_seal`, for files that earlier versions wrote without a checksum: those come back as they are.

    Raises:
        SealBroken: the content is not what its checksum says.
    """
    try:
        return open_seal(data)
    except Unsealed:
        return data


def sealed_line(record: Record) -> str:
    """One line of JSON with its checksum, as `read_sealed` reads it."""
    return seal(record.model_dump_json()) + "\n"


def read_sealed(kind: type[R], data: bytes) -> R:
    """Parses sealed JSON text, ignoring keys that `kind` does not know.

    Raises:
        ValueError: as `open_seal` and `read_tolerant` do.
    """
    return read_tolerant(kind, open_seal(data))


def is_sealed(data: bytes) -> bool:
    """Whether there is a checksum, right or wrong."""
    return _SEAL.fullmatch(data, data.rfind(b",") + 1) is not None


def digest(data: bytes | memoryview) -> str:
    """`sha256:<64 hex digits>`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _with_checksum(schema: JsonDict) -> None:
    properties = schema.setdefault("properties", {})
    assert isinstance(properties, dict)
    properties["checksum"] = {
        "type": "string",
        "pattern": "^sha256:[0-9a-f]{64}$",
        "description": "Of all bytes of the file before the comma that precedes it.",
    }


class Sealed(Record):
    """A model whose files carry their checksum. It belongs to the text, and so is no field, but in the schema."""

    model_config = ConfigDict(json_schema_extra=_with_checksum)
