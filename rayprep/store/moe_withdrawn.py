"""MoE configs that a server died of: kept where none looks, with the reason, and not put back.

<profiles>/moe_configs/tuning/<digest>.withdrawn/<name>.json    the files, as they were
<profiles>/moe_configs/tuning/<digest>.withdrawn/reason.json    what died, and of which files

The digest names the tuning (`tuning_digest`): it changes with the tuner's version, with the experts' shape, and with
what the host runs, and what was withdrawn before then binds nobody any more.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from rayprep.base.errors import ErrorType, StageError
from rayprep.base.records import Record, Utc, utc_now
from rayprep.base.sealed import SealBroken, read_sealed, sealed_line
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions
from rayprep.store.moe_folder import digest_of, drop_dangling_links


class Withdrawal(Record):
    """Why files are not before servers any more."""

    tuner: str
    """`rayprep`, or the script that tuned."""
    files: dict[str, str]
    """Path below the profiles root -> `sha256:...`."""
    reason: str
    since: Utc


def withdrawal_of(layout: Layout, digest: str) -> Withdrawal | None:
    """Read what was withdrawn of a tuning; None where nothing was, or it cannot be read."""
    with contextlib.suppress(OSError, ValidationError, SealBroken):
        return read_sealed(Withdrawal, layout.caches.read(_home(layout, digest) / "reason.json"))
    return None


def refuse_withdrawn(layout: Layout, digest: str, contents: Sequence[bytes]) -> None:
    """Raise StageError where one of these is what was withdrawn before."""
    known = withdrawal_of(layout, digest)
    if known and (again := {digest_of(content) for content in contents} & set(known.files.values())):
        message = f"the tuner came to the config again that was withdrawn on {known.since} ({again.pop()[:19]}...)"
        raise StageError(ErrorType.WITHDRAWN, f"{message}: {known.reason}")


def tuned_files(layout: Layout) -> frozenset[str]:
    """The configs that `moe_tune` put before servers, below the profiles root, as its completions list them."""
    completions, _ = read_completions(layout, StageName.MOE_TUNE)
    return frozenset(path for completion in completions for path in completion.artifacts)


def withdraw(layout: Layout, digest: str, moved: Mapping[str, Path], tuner: str, reason: str) -> Withdrawal:
    """Keeps files that are out of servers' sight already, says why, and takes away every completion that lists one.

    Args:
        moved: where each was, below the profiles root -> where it is.

    Raises:
        OSError: a file cannot be moved, or the reason not be kept.
    """
    digests = {path: digest_of(layout.caches.read(place)) for path, place in moved.items()}
    withdrawal = Withdrawal(tuner=tuner, files=digests, reason=reason, since=utc_now())
    home = _home(layout, digest)
    layout.caches.make(home)
    layout.caches.write(home / "reason.json", sealed_line(withdrawal))
    for path, place in moved.items():
        layout.caches.rename(place, home / path.rpartition("/")[2])
    completions, _ = read_completions(layout, StageName.MOE_TUNE)
    for completion in completions:
        if digests.keys() & completion.artifacts.keys():
            layout.store.unlink(layout.completion(StageName.MOE_TUNE, completion.key), missing_ok=True)
    drop_dangling_links(layout)
    return withdrawal


def release(layout: Layout, digest: str, tuner: str) -> None:
    """Forgets what was withdrawn of a tuner that came to another config. Another tuner would come to the same again.

    Raises OSError.
    """
    known = withdrawal_of(layout, digest)
    if known is None or known.tuner == tuner:
        with contextlib.suppress(FileNotFoundError):
            layout.caches.remove(_home(layout, digest))


def _home(layout: Layout, digest: str) -> Path:
    return layout.cache(CacheName.MOE_CONFIGS) / "tuning" / f"{digest}.withdrawn"
