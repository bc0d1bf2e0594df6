"""Completion files: written last, read back without ever failing a run."""

import re
from pathlib import Path

from pydantic import ValidationError

from rayprep.host.atomic import write_text
from rayprep.host.layout import Layout
from rayprep.model.base import Record
from rayprep.model.completion import Completion, Identity
from rayprep.model.stages import StageName
from rayprep.model.text import printable

_KEY = re.compile(r"(?P<slug>.+)-tp(?P<tp>\d+)-[0-9a-f]{16}")


class Unreadable(Record):
    """A completion file that says nothing: truncated, empty, not JSON, or of a form not known here."""

    path: str
    why: str


def write_completion(layout: Layout, completion: Completion) -> Path:
    path = layout.completion(completion.stage, completion.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One line: it lists every file, and indenting them would add a third to what each `ensure` has to read.
    write_text(path, completion.model_dump_json() + "\n")
    _drop_parts(layout, completion)
    return path


def _drop_parts(layout: Layout, whole: Completion) -> None:
    """Whose place `whole` has taken."""
    found, _ = read_completions(layout, whole.stage, whole.identity.model_slug, whole.identity.tp)
    for each in found:
        if each.identity.part and each.identity.model_copy(update={"part": ""}) == whole.identity:
            layout.completion(each.stage, each.key).unlink(missing_ok=True)


def read_completions(
    layout: Layout, stage: StageName, slug: str | None = None, tp: int | None = None
) -> tuple[list[Completion], list[Unreadable]]:
    """All completions of a stage, or only those whose key is of `slug` and `tp`."""
    folder = layout.completions(stage)
    good: list[Completion] = []
    bad: list[Unreadable] = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        match = _KEY.fullmatch(path.stem)
        wanted = (slug is None or (match and match["slug"] == slug)) and (
            tp is None or (match and int(match["tp"]) == tp)
        )
        if not wanted:
            continue
        try:
            completion = Completion.model_validate_json(path.read_bytes(), extra="ignore")
        except (OSError, ValidationError) as error:
            bad.append(Unreadable(path=printable(str(path)), why=_first_line(error)))
            continue
        # A file under a name that is not its own key was copied by hand, and must not stand in for it.
        if completion.key == path.stem and completion.stage is stage:
            good.append(completion)
    return good, bad


def of_identity(completions: list[Completion], identity: Identity) -> list[Completion]:
    """Those that are for exactly this model, layout and flags, whatever host built them."""
    return [each for each in completions if each.identity == identity]


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"]
    return str(error).splitlines()[0]
