"""What the servers of a proof have left and said, judged: whether nothing was left to compile, and if not, what."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayprep.base.errors import ErrorType, RayprepError
from rayprep.base.secrets import redacted_command
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.process_end import together
from rayprep.model.proof import NAMED, NewFile, SliceProof, VerifyResult, new_files, shortfall
from rayprep.node.proof.servers import ProofServer
from rayprep.store.cache_watch import CacheUse
from rayprep.store.scan import hash_files


def judge(
    layout: Layout,
    listed: Mapping[str, str],
    proofs: Sequence[ProofServer],
    use: CacheUse,
    missing: Sequence[NewFile],
) -> VerifyResult:
    """The proof's result, but for how long it took. Without a command where no server came to be started.

    Args:
        listed: the artifacts of the request's completions, path below the profiles root -> `sha256:...`.
        proofs: all of them have ended.
        use: of the caches, from before the servers until after them.
        missing: what is listed and had gone before they started.
    """
    homes = [_files_below(each.home) for each in proofs]
    new = new_files([*use.new, *_rewritten(layout, listed, use)], [file for home in homes for file in home])
    events = tuple(event for each in proofs for event in each.server.reader.jit_events)
    ready = [each.server.ready_s for each in proofs]
    first, failures = proofs[0].server, [each.failure for each in proofs if each.failure]
    outcomes = tuple(each.outcome(layout, home) for each, home in zip(proofs, homes, strict=True))
    found = VerifyResult(
        ran=True,
        status="ok",
        new_files=len(new),
        jit_events=len(events),
        ready_s=round(max(filter(None, ready)), 3) if all(ready) else None,
        command=redacted_command(first.command),
        port=first.port,
        warmup_pid=first.pid,
        new=new[:NAMED],
        missing=tuple(missing[:NAMED]),
        unread=() if failures else _unread(listed, use),
        events=events[:NAMED],
        log_file=layout.located(proofs[0].log),
        slices=outcomes if len(outcomes) > 1 else (),
        warnings=tuple(warning for each in proofs for warning in each.server.warnings),
        cleanup=together([each.server.cleanup for each in proofs if each.server.cleanup]),
    )
    short = shortfall(found)
    if not short and not failures:
        return found
    message = "; ".join([*_in_words(found.slices, failures), *([short] if short else [])])
    kind = ErrorType.VERIFY_FAILED if short or not failures else failures[0].error_type
    return found.model_copy(update={"status": "error", "error_type": kind, "message": message})


def _rewritten(layout: Layout, listed: Mapping[str, str], use: CacheUse) -> list[str]:
    """What was compiled again in place: listed, written again, and not what it was."""
    again = [path for path in use.rewritten if path in listed]
    now = hash_files(layout.profiles, again)
    return [path for path in again if now.get(path) != listed[path]]


def _unread(listed: Mapping[str, str], use: CacheUse) -> tuple[str, ...]:
    """A server that was led elsewhere compiles there, and leaves nothing new here."""
    if not use.tells_reads:
        return ()
    prepared, read = ({path.partition("/")[0] for path in paths} for paths in (listed, use.read))
    return tuple(sorted(prepared - read - {CacheName.OTHERS.value, CacheName.MOE_CONFIGS.value}))


def _in_words(slices: Sequence[SliceProof], failures: Sequence[RayprepError]) -> list[str]:
    """What failed; with the slice's name, where there are several."""
    return [f"{each}: {each.message}" for each in slices if each.error_type] or [each.line for each in failures]


def _files_below(folder: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118 - one path of many, and Path is slow
        for place, _, names in os.walk(folder)
        for name in names
    ]
