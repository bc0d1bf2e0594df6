"""A completion as its file's text: sealed, read strictly, and free of secrets.

Format 2 ends with its checksum (base/sealed.py). Format 1, of earlier versions, has none and is read word for word:
every name must be known and there once, so that one that was damaged is not a default, and one that only a checksum
could prove must not be there.
"""

import json
from collections.abc import Iterable

from pydantic import ValidationError

from rayprep.base.records import Record, first_problem, read_tolerant
from rayprep.base.sealed import SealBroken, Unsealed, open_seal, sealed_line
from rayprep.base.secrets import redacted_command, redacted_flags, redacted_settings, redacted_text
from rayprep.model.completion import COMPLETION_FORMAT, READ_FORMATS, Completion, cache_key
from rayprep.sglang.kernel_config import KernelConfig

_UNSEALED_FORMAT = "1"


class CompletionDamaged(ValueError):
    """A text is no completion; its message says why, in one line."""


class _Format(Record):
    schema_version: str


def completion_text(completion: Completion) -> str:
    """One line: it lists every file, and indenting them would add a third to what each `ensure` has to read."""
    return sealed_line(completion)


def parse_completion(data: bytes) -> Completion:
    """Reads a completion of this format or of format 1, which is given as if it were of this one.

    One of another format is returned as far as it is known here; `check_completion` says so.

    Raises:
        CompletionDamaged: it is truncated, changed, or of no form known here.
    """
    try:
        return _parse(data)
    except ValidationError as error:
        raise CompletionDamaged(first_problem(error)) from None
    except (SealBroken, RecursionError) as error:
        raise CompletionDamaged(str(error)) from None


def _parse(data: bytes) -> Completion:
    try:
        content = open_seal(data)
    except Unsealed:
        found = read_tolerant(_Format, data).schema_version
        if found == COMPLETION_FORMAT:
            raise
        return _parse_unsealed(data) if found == _UNSEALED_FORMAT else read_tolerant(Completion, data)
    completion = read_tolerant(Completion, content)
    if completion.schema_version == _UNSEALED_FORMAT:
        raise CompletionDamaged(f"format {_UNSEALED_FORMAT} has no checksum, and there is one")
    return completion


def _parse_unsealed(data: bytes) -> Completion:
    completion = Completion.model_validate_json(data)
    try:
        json.loads(data, object_pairs_hook=_refuse_twice, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise CompletionDamaged("it is not UTF-8") from None
    except CompletionDamaged:
        raise
    except ValueError as error:
        raise CompletionDamaged(str(error)) from None
    if unproved := _unproved(completion):
        raise CompletionDamaged(f"format {_UNSEALED_FORMAT} has no checksum, and nothing else proves {unproved}")
    return completion.model_copy(update={"schema_version": COMPLETION_FORMAT})


def _unproved(completion: Completion) -> str:
    """Name what decides and could be damaged unseen: no model knows these names, and no file bears them. Else empty."""
    if completion.outcome == "built" and not completion.artifacts:
        return "that it lists no file"
    if completion.moe_configs:
        return "which MoE configs its server looked for"
    sizes = completion.tuning.sizes if completion.tuning else ()
    names = {name for size in sizes for name in size.config or ()}
    strange = sorted(names - KernelConfig.model_fields.keys())
    return f"the setting {strange[0]}" if strange else ""


def _refuse_twice(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise CompletionDamaged("it has a key twice")


def _refuse_constant(name: str) -> None:
    raise CompletionDamaged(f"{name} is no number")


def cleaned(completion: Completion) -> Completion:
    """The completion as it may be written: of this format, and without secrets that an earlier version let in.

    What it is for changes with them, and so does its key. Itself, where there is nothing to change.
    """
    was, proof = completion.identity, completion.verification
    known = completion.schema_version in READ_FORMATS
    identity = was.model_copy(
        update={
            "server_flags": redacted_flags(was.server_flags),
            "compiler_settings": redacted_settings(was.compiler_settings),
        }
    )
    command = redacted_command(proof.command) if proof else ()
    clean = completion.model_copy(
        update={
            "schema_version": COMPLETION_FORMAT if known else completion.schema_version,
            "identity": identity,
            "model_source": redacted_text(completion.model_source),
            "reason": redacted_text(completion.reason) if completion.reason else completion.reason,
            "server_command": redacted_command(completion.server_command),
            "verification": proof.model_copy(update={"command": command}) if proof else None,
        }
    )
    if identity != was:
        clean = clean.model_copy(update={"key": cache_key(completion.stage, identity, completion.signature)})
    return completion if clean == completion else clean


def latest_of_each(completions: Iterable[Completion]) -> list[Completion]:
    """One for each key: two may have differed by a secret alone. In the order of the keys' first."""
    latest: dict[str, Completion] = {}
    for completion in completions:
        other = latest.setdefault(completion.key, completion)
        if completion.finished_at > other.finished_at:
            latest[completion.key] = completion
    return list(latest.values())
