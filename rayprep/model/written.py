"""The text of a result's file, the same for everybody who writes one: indented JSON without secrets."""

from rayprep.model.base import Record, to_json
from rayprep.model.secrets import redacted_json


def result_text(result: Record) -> str:
    """What `prep_result.json` or `fleet_result.json` holds. Others read it, so no string in it keeps a secret."""
    return redacted_json(to_json(result).rstrip("\n"), indent=2) + "\n"
