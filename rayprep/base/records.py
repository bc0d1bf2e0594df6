"""The base of every model that rayprep writes, and the one way to read them back.

Writers are strict: a field that the model does not know is a programming error. Readers are tolerant: a file
from a newer rayprep, or one that another program has added to, is read for the fields known here.
"""

from datetime import UTC, datetime
from pathlib import PurePath
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from rayprep.base.text import printable

_YEAR_1 = datetime.min.replace(tzinfo=UTC).timestamp()
_YEAR_9999 = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


class Record(BaseModel):
    """A frozen model that forbids unknown keys."""

    # Built when first used: a command that only looks needs few of them.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        defer_build=True,
        # A schema of what is written has all fields, also those that have a default for whoever makes the record.
        json_schema_serialization_defaults_required=True,
    )


class Located(Record):
    """One file or folder under its two names: as the run sees it, and as the host outside a container does."""

    container_path: str
    host_path: str


FINITE = ConfigDict(allow_inf_nan=False)
"""For a model in whose file a number must not read back as another one: JSON has no NaN, and nothing infinite."""

R = TypeVar("R", bound=Record)


def read_tolerant(kind: type[R], text: str | bytes) -> R:
    """Parses JSON text, ignoring keys that `kind` does not know.

    Raises:
        pydantic.ValidationError: the text is not JSON, or a known field is missing or wrongly typed.
    """
    return kind.model_validate_json(text, extra="ignore")


def first_problem(error: ValidationError) -> str:
    """Return the first field that pydantic refused and why, as `stages.serve.status: Field required`."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    problem = first["msg"].removeprefix("Value error, ")
    return f"{field}: {problem}" if field else problem


def left_out(record: Record) -> list[str]:
    """The fields, at any depth, that were not given when the record was made, and so have their defaults."""
    missing = [name for name in type(record).model_fields if name not in record.model_fields_set]
    for name in record.model_fields_set:
        inner = getattr(record, name)
        for part in inner if isinstance(inner, tuple) else (inner,):
            if isinstance(part, Record):
                missing += [f"{name}.{deeper}" for deeper in left_out(part)]
    return missing


def to_json(record: Record) -> str:
    """Indented JSON with a final newline, as every file of ours is written."""
    return record.model_dump_json(indent=2) + "\n"


def encodable(text: str) -> str:
    """`text` with whatever UTF-8 cannot hold written out: a file name's stray bytes, or half a surrogate pair."""
    return "".join(printable(char) if "\ud800" <= char <= "\udfff" else char for char in text)


def counted(count: int, one: str, many: str = "") -> str:
    """`1 host`, `1,000 hosts`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _checked_utf8(value: str) -> str:
    if not value.isascii() and encodable(value) != value:
        raise ValueError("must be UTF-8")
    return value


Utf8 = Annotated[str, AfterValidator(_checked_utf8)]
"""Text from outside that goes into a file as it is. Python's own strings can hold what no JSON file can."""


def _checked_word(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold the character NUL")
    return value


Word = Annotated[Utf8, AfterValidator(_checked_word)]
"""Text that a program is given as an argument, or a path: no operating system takes a NUL there."""


def _checked_absolute(path: str) -> str:
    if not PurePath(path).is_absolute():
        raise ValueError("must be an absolute path")
    return path


AbsolutePath = Annotated[str, AfterValidator(_checked_absolute)]


def _checked_utc(value: str) -> str:
    parse_utc(value)
    return value


def parse_utc(value: str) -> datetime:
    """Parses `YYYY-MM-DDTHH:MM:SSZ`. Raises ValueError on any other form."""
    moment = datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    if format_utc(moment) != value:  # strptime takes 2025-1-9, too
        raise ValueError(f"{value!r} is not of the form YYYY-MM-DDTHH:MM:SSZ")
    return moment


def format_utc(moment: datetime) -> str:
    # Not strftime, which writes the year 800 with three digits.
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def utc_from_timestamp(seconds: float) -> str:
    """Seconds since the epoch as `YYYY-MM-DDTHH:MM:SSZ`; a time outside the years 1 to 9999 is the nearest within.

    A file system keeps any time that touch(1) was given.
    """
    return format_utc(datetime.fromtimestamp(min(max(seconds, _YEAR_1), _YEAR_9999), UTC))


def utc_now() -> str:
    return format_utc(datetime.now(UTC))


Utc = Annotated[str, AfterValidator(_checked_utc)]
"""UTC to the second, `YYYY-MM-DDTHH:MM:SSZ`."""
