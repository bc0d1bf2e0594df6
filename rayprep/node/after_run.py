"""What a run leaves for others: files that the group can use, a word on its telemetry, the container's manifest."""

import time
from collections.abc import Iterable

from rayprep.base.errors import RayprepError
from rayprep.base.records import parse_utc
from rayprep.host.group_access import share_with_group
from rayprep.host.manifest_file import change_manifest
from rayprep.host.prometheus import probe
from rayprep.model.container_manifest import Manifest
from rayprep.model.manifest_changes import Changes, begun, ended
from rayprep.model.result import PrepResult
from rayprep.model.stages import StageName, StageStatus
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


def tell_begun(container: Manifest, result: PrepResult, stages: Iterable[StageName]) -> str | None:
    """Says in the manifest that `stages` are being built. Returns why it could not, in one line."""
    return _tell(container, begun(result, stages))


def tell_ended(container: Manifest, result: PrepResult) -> str | None:
    """Says in the manifest how the stages went. Returns why it could not, in one line."""
    return _tell(container, ended(result))


def _tell(container: Manifest, changes: Changes) -> str | None:
    try:
        change_manifest(container, changes)
    except (RayprepError, OSError) as error:
        return f"the manifest's optimizations could not be written: {error}"
    return None
