"""What a stage has made: its completion, hashed, and its part of the result."""

from collections.abc import Iterable

from rayprep import __version__
from rayprep.base.errors import ErrorType, StageError
from rayprep.base.records import utc_now
from rayprep.model.completion import Completion
from rayprep.model.plan import Decision
from rayprep.model.result import Artifacts
from rayprep.model.signature import differences
from rayprep.model.stages import StageName
from rayprep.node.survey import Survey
from rayprep.stages.protocol import Built
from rayprep.store.completions import write_completion
from rayprep.store.scan import CacheScan, files_of, hash_files


def complete(
    survey: Survey, empty: Completion, built: Built, scans: Iterable[CacheScan], widened: Completion | None
) -> Completion:
    """Hashes what the build uses and writes the completion.

    Args:
        empty: the completion without coverage and files.
        widened: an earlier completion of the same key, all of whose files are known to be good; it is added.

    Raises:
        StageError: `verify_failed` when the build uses nothing, or something that is not plainly in its cache.
    """
    now = files_of(scans)
    if not built.used and not built.may_be_empty:
        raise StageError(ErrorType.VERIFY_FAILED, "the build left no file behind")
    if strange := sorted(built.used - now.keys()):
        raise StageError(ErrorType.VERIFY_FAILED, f"the build uses {strange[0]}, which is no plain file of its cache")
    fresh = {path: (now[path], digest) for path, digest in hash_files(survey.layout.profiles, built.used).items()}
    widened = None if built.whole else widened
    kept = widened.artifacts if widened else {}
    completion = empty.model_copy(
        update={
            "units": tuple(sorted({*built.units, *(widened.units if widened else ())})),
            # What was listed and not used now keeps the hash that it had, rather than one of what it may have become.
            "artifacts": dict(sorted({**kept, **fresh}.items())),
            "duration_s": max(empty.duration_s, widened.duration_s if widened else 0.0),
            "finished_at": utc_now(),
            "mem_fraction": built.server.mem_fraction if built.server and empty.stage is StageName.SERVE else None,
        }
    )
    write_completion(survey.layout, completion)
    return completion


def drop_proof(survey: Survey) -> None:
    """A proof stands until something is built, however that ends.

    Raises:
        OSError: the completion that holds it cannot be written.
    """
    served = survey.completions.get(StageName.SERVE)
    if served is not None and served.verification is not None:
        write_completion(survey.layout, served.model_copy(update={"verification": None}))


def deltas(before: list[CacheScan], after: list[CacheScan]) -> Artifacts:
    """What any stage has to say of its caches, also one that failed."""
    return Artifacts(
        disk_delta_bytes=sum(scan.size_bytes for scan in after) - sum(scan.size_bytes for scan in before),
        files_delta=sum(scan.file_count for scan in after) - sum(scan.file_count for scan in before),
    )


def new_completion(survey: Survey, decision: Decision, run_id: str, started_at: str) -> Completion:
    """A completion with no files and no coverage yet."""
    earlier = survey.completions.get(decision.stage)
    return Completion(
        stage=decision.stage,
        key=decision.key,
        identity=survey.identity,
        model_source=str(survey.model.source),
        signature=survey.signature,
        started_at=started_at,
        finished_at=utc_now(),
        duration_s=0.0,
        run_id=run_id,
        rayprep_version=__version__,
        server_command=earlier.server_command if earlier else (),
        inventory=survey.request.inventory,
    )


def record_skip(survey: Survey, decision: Decision, run_id: str) -> None:
    """Keeps that there is rightly nothing to build here, so that the cache does not read as invalid for ever.

    Raises:
        OSError: it cannot be written.
    """
    known = survey.completions.get(decision.stage)
    # One that lists files has what a server made there all the same; it is kept for as long as it holds.
    if known is not None and (known.outcome == "skipped" or decision.check.valid):
        return
    completion = new_completion(survey, decision, run_id, utc_now())
    write_completion(survey.layout, completion.model_copy(update={"outcome": "skipped", "reason": decision.reason}))


def record_unsupported(survey: Survey, decision: Decision, run_id: str, why: str) -> None:
    """Keeps that what was tried does not work here, so that the next run does not try it again.

    Raises:
        OSError: it cannot be written.
    """
    known = survey.completions.get(decision.stage)
    if known is not None and known.outcome == "built":  # what it lists works all the same
        return
    units = decision.work.units if decision.work else ()
    fits = known is not None and not differences(StageName.SERVE, known.signature, survey.signature)
    earlier = (*known.tried, known.units) if known is not None and fits and known.outcome == "unsupported" else ()
    told = {"outcome": "unsupported", "reason": why, "units": units, "tried": tuple(set(earlier) - {units})}
    write_completion(survey.layout, new_completion(survey, decision, run_id, utc_now()).model_copy(update=told))
