"""Completion files: written last, read back without ever failing a run."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from rayprep.base.records import Record
from rayprep.base.sealed import is_sealed
from rayprep.base.text import printable
from rayprep.host.layout import Layout
from rayprep.host.locks import held_if_free
from rayprep.model.completion import Completion, Identity
from rayprep.model.completion_text import (
    CompletionDamaged,
    cleaned,
    completion_text,
    latest_of_each,
    parse_completion,
)
from rayprep.model.signature import Signature, differences
from rayprep.model.stages import StageName

_KEY = re.compile(r"(?P<slug>.+)-tp(?P<tp>\d+)-[0-9a-f]{16}")


class Unreadable(Record):
    """A completion file that says nothing: truncated, empty, not JSON, or of a form not known here."""

    path: str
    why: str


def write_completion(layout: Layout, completion: Completion) -> Path:
    """Writes it without secrets, under the key that it then has. Raises OSError."""
    completion = cleaned(completion)
    path = layout.completion(completion.stage, completion.key)
    layout.store.write(path, completion_text(completion))
    _drop_parts(layout, completion)
    return path


def _drop_parts(layout: Layout, whole: Completion) -> None:
    """Whose place `whole` has taken."""
    found, _ = read_completions(layout, whole.stage, whole.identity.model_slug, whole.identity.tp)
    for each in found:
        if each.identity.part and each.identity.model_copy(update={"part": ""}) == whole.identity:
            layout.store.unlink(layout.completion(each.stage, each.key), missing_ok=True)


def read_completions(
    layout: Layout, stage: StageName, slug: str | None = None, tp: int | None = None
) -> tuple[list[Completion], list[Unreadable]]:
    """All completions of a stage, or only those whose key is of `slug` and `tp`.

    One in which an earlier version wrote a secret is given without it, and its file is replaced where that can be done
    now: a look neither waits nor fails for it.
    """
    good: list[Completion] = []
    bad: list[Unreadable] = []
    hiding: list[Path] = []
    for path in _files(layout, stage, slug, tp):
        try:
            completion = parse_completion(layout.store.read(path))
        except (OSError, CompletionDamaged) as error:
            bad.append(Unreadable(path=printable(str(path)), why=str(error).splitlines()[0]))
            continue
        if _is_at(path, stage, completion):
            clean = cleaned(completion)
            good.append(clean)
            hiding += [path] if clean is not completion else []
    if hiding:
        with contextlib.suppress(OSError), held_if_free(layout.store_lock, layout.store) as ours:
            for path in hiding if ours else ():
                _rewrite(layout, stage, path)
        good = latest_of_each(good)
    return good, bad


def rewrite_outdated(layout: Layout) -> None:
    """Replaces the completions of an earlier format, and those with a secret. The caller holds the store's lock.

    One that this user cannot replace stays, and is read as it is.
    """
    for stage in StageName:
        for path in _files(layout, stage):
            with contextlib.suppress(OSError):
                _rewrite(layout, stage, path)


def _rewrite(layout: Layout, stage: StageName, path: Path) -> None:
    """Writes what a file says as it would be written today, under its key of today. Raises OSError."""
    try:
        data = layout.store.read(path)
        completion = parse_completion(data)
    except (FileNotFoundError, CompletionDamaged):
        return  # somebody was faster, or it says nothing
    clean = cleaned(completion)
    if not _is_at(path, stage, completion) or (clean is completion and is_sealed(data)):
        return
    place = layout.completion(stage, clean.key)
    if place == path or not _holds_a_later(layout, place, clean):
        layout.store.write(place, completion_text(clean))
    if place != path:
        layout.store.unlink(path, missing_ok=True)


def _holds_a_later(layout: Layout, place: Path, completion: Completion) -> bool:
    try:
        return parse_completion(layout.store.read(place)).finished_at >= completion.finished_at
    except (OSError, CompletionDamaged):
        return False


def _files(layout: Layout, stage: StageName, slug: str | None = None, tp: int | None = None) -> list[Path]:
    folder = layout.completions(stage)
    names: list[str] = []
    with contextlib.suppress(OSError):  # no folder, or one that cannot be read, holds none
        names = layout.store.names(folder)
    paths = [folder / name for name in names if name.endswith(".json") and name[0] != "."]
    return [path for path in paths if _is_of(path.stem, slug, tp)]


def _is_of(key: str, slug: str | None, tp: int | None) -> bool:
    match = _KEY.fullmatch(key)
    of_slug = slug is None or (match is not None and match["slug"] == slug)
    return of_slug and (tp is None or (match is not None and int(match["tp"]) == tp))


def _is_at(path: Path, stage: StageName, completion: Completion) -> bool:
    """A file under a name that is not its own key was copied by hand, and must not stand in for it."""
    return completion.key == path.stem and completion.stage is stage


def of_identity(completions: list[Completion], identity: Identity) -> list[Completion]:
    """Those that are for exactly this model, layout and flags, whatever host built them."""
    return [each for each in completions if each.identity == identity]


def own_completion(found: Sequence[Completion], identity: Identity, now: Signature) -> Completion | None:
    """That of a request on a host with signature `now`; `found` are of one stage.

    There is one under its key, or none. A host without nvcc keeps what it received under the key of who built it,
    perhaps beside a note of its own that there is nothing to build.
    """
    fits = [each for each in of_identity(list(found), identity) if not differences(each.stage, each.signature, now)]
    return max(fits, key=lambda each: each.outcome == "built", default=None)
