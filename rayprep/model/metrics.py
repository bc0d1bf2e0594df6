"""What monitoring is told of a run: the table of all metrics, and the samples that a result gives. Pure.

Source of the names and units: prometheus.io/docs/practices/naming.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rayprep.model.fleet.result import FleetHost
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.proof import VERIFY
from rayprep.model.result import PrepResult, StageResult
from rayprep.model.stages import StageName


@dataclass(frozen=True)
class Metric:
    """A counter adds up over runs; a gauge is as the last run that named these labels left it."""

    name: str
    help: str
    labels: tuple[str, ...]

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")

    def sample(self, value: float, *labels: str) -> "Sample":
        return Sample(self, labels, value)


@dataclass(frozen=True)
class Sample:
    """One value, with those of the metric's labels."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


STAGE_DURATION = Metric(
    "rayprep_stage_duration_seconds",
    "How long the stage, or the proof, took on the host when it last ended with this status.",
    ("host", "stage", "status"),
)
KERNELS_BUILT = Metric("rayprep_kernels_built_total", "Kernels and modules that were compiled.", ("host", "stage"))
KERNELS_REUSED = Metric(
    "rayprep_kernels_reused_total", "Kernels and modules that were asked for and found ready.", ("host", "stage")
)
SHIPPED = Metric("rayprep_shipped_bytes_total", "What the host has received from other hosts.", ("host",))
WAITED = Metric(
    "rayprep_lease_wait_seconds_total", "How long the host has waited for other runs' leases and locks.", ("host",)
)
HOSTS = Metric("rayprep_hosts", "Hosts of the run that was last heard of, by state.", ("status",))
METRICS = (STAGE_DURATION, KERNELS_BUILT, KERNELS_REUSED, SHIPPED, WAITED, HOSTS)


def host_samples(result: PrepResult) -> list[Sample]:
    """Of one host's finished result."""
    host, verify = result.run.host, result.verify
    found = [WAITED.sample(result.waited_s, host)]
    for stage, each in result.stages.items():
        found += _stage_samples(host, stage, each)
    if verify and verify.ran:
        found.append(STAGE_DURATION.sample(verify.duration_s, host, VERIFY, verify.status))
    return found


def _stage_samples(host: str, stage: StageName, each: StageResult) -> Iterator[Sample]:
    if each.ran:
        yield STAGE_DURATION.sample(each.duration_s, host, stage.value, each.status.value)
    if each.artifacts:
        built = len(each.artifacts.built)
        yield KERNELS_BUILT.sample(built, host, stage.value)
        yield KERNELS_REUSED.sample(max(0, len(each.artifacts.units) - built), host, stage.value)


def fleet_samples(hosts: Mapping[str, FleetHost]) -> Iterator[Sample]:
    """Of a fleet's finished result: what the hosts' own results do not say."""
    for host, known in hosts.items():
        yield SHIPPED.sample(sum(each.bytes for each in known.received), host)
        for stage, kernels in known.helped_kernels.items():
            yield KERNELS_BUILT.sample(kernels, host, stage.value)


def state_samples(hosts: Iterable[FleetHost]) -> list[Sample]:
    """Of a run at any moment."""
    counts = Counter(host.state for host in hosts)
    return [HOSTS.sample(counts[phase], phase.value) for phase in HostPhase]


def merge(earlier: Iterable[Sample], later: Iterable[Sample]) -> list[Sample]:
    """What to show after both: counters are added, and of gauges the later one stands."""
    values = {(each.metric, each.labels): each.value for each in earlier}
    for each in later:
        before = values.get((each.metric, each.labels), 0.0) if each.metric.is_counter else 0.0
        values[each.metric, each.labels] = before + each.value
    return [metric.sample(value, *labels) for (metric, labels), value in values.items()]
