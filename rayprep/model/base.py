"""The base of every model that rayprep writes, and the one way to read them back.

Writers are strict: a field that the model does not know is a programming error. Readers are tolerant: a file
from a newer rayprep, or one that another program has added to, is read for the fields known here.
"""

from datetime import UTC, datetime
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen model that forbids unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound=Record)


def read_tolerant(kind: type[R], text: str | bytes) -> R:
    """Parses JSON text, ignoring keys that `kind` does not know.

    Raises:
        pydantic.ValidationError: the text is not JSON, or a known field is missing or wrongly typed.
    """
    return kind.model_validate_json(text, extra="ignore")


def to_json(record: Record) -> str:
    """Indented JSON with a final newline, as every file of ours is written."""
    return record.model_dump_json(indent=2) + "\n"


def _checked_utc(value: str) -> str:
    parse_utc(value)
    return value


def parse_utc(value: str) -> datetime:
    """Parses `YYYY-MM-DDTHH:MM:SSZ`. Raises ValueError on any other form."""
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def format_utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_from_timestamp(seconds: float) -> str:
    """Seconds since the epoch as `YYYY-MM-DDTHH:MM:SSZ`."""
    return format_utc(datetime.fromtimestamp(seconds, UTC))


def utc_now() -> str:
    return format_utc(datetime.now(UTC))


Utc = Annotated[str, AfterValidator(_checked_utc)]
"""UTC to the second, `YYYY-MM-DDTHH:MM:SSZ`."""
