"""The text of files that others read, the same for everybody who writes one: indented JSON without secrets."""

from rayprep.base.records import R, Record, read_tolerant, to_json
from rayprep.base.sealed import open_if_sealed, seal
from rayprep.base.secrets import redacted_json


def shown_text(record: Record) -> str:
    """The record without a secret in any of its strings."""
    return redacted_json(to_json(record).rstrip("\n"), indent=2) + "\n"


def result_text(result: Record) -> str:
    """What `prep_result.json` or `fleet_result.json` holds: without secrets, and with its checksum."""
    return seal(shown_text(result))


def parse_result(kind: type[R], data: bytes) -> R:
    """Reads a result back; earlier versions wrote none with a checksum.

    Raises:
        SealBroken: its content is not what its checksum says.
        pydantic.ValidationError: it is no result.
    """
    return read_tolerant(kind, open_if_sealed(data))
