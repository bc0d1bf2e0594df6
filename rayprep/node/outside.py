"""What a run leaves for others: files that the group can use, a word on its telemetry, the container's manifest."""

import time
from pathlib import Path

from rayprep.host.container_run import update_manifest
from rayprep.host.prometheus import probe
from rayprep.host.sharing import share_with_group
from rayprep.model.base import parse_utc, utc_now
from rayprep.model.errors import RayprepError
from rayprep.model.manifest import Manifest, Optimization, merged
from rayprep.model.result import PrepResult, StageResult
from rayprep.model.stages import StageStatus
from rayprep.model.telemetry import TelemetryProbe
from rayprep.node.survey import Survey


def share(survey: Survey, result: PrepResult) -> None:
    """After a stage has succeeded: `chmod -R g+rwX` on the caches."""
    if any(each.status is StageStatus.OK for each in result.stages.values()):
        share_with_group(survey.layout.profiles)


def probed(survey: Survey, result: PrepResult) -> TelemetryProbe:
    """Whether Prometheus has seen the run's servers."""
    started = parse_utc(result.run.started_at).timestamp()
    return probe(survey.layout.container_run, result.run.run_id, started, time.time())


def tell_container(container: Manifest, result: PrepResult) -> str | None:
    """Writes `optimizations.<stage>` of every stage. Returns why it could not, in one line."""
    path = Path(container.manifest.container_path)
    changes: dict[tuple[str, ...], object] = {
        ("optimizations", stage.value): _optimization(result, each).model_dump(mode="json")
        for stage, each in result.stages.items()
    }
    try:
        update_manifest(path, lambda text: merged(text, str(path), changes))
    except (RayprepError, OSError) as error:
        return f"the manifest's optimizations could not be written: {error}"
    return None


def _optimization(result: PrepResult, stage: StageResult) -> Optimization:
    delta = stage.artifacts.disk_delta_bytes if stage.ran and stage.artifacts else None
    return Optimization(
        status=stage.status,
        reason=stage.reason,
        duration_s=stage.duration_s,
        size_delta_bytes=delta,
        error_type=stage.error_type,
        model_slug=result.run.model_slug,
        tp_size=result.run.tp,
        finished_at=utc_now(),
    )
