"""A run in a few facts, and what its hosts are made of: pure."""

from collections import Counter

from rayprep.base.human import duration
from rayprep.base.records import counted
from rayprep.model.fleet.result import FleetResult
from rayprep.model.proof import VERIFY
from rayprep.model.result import PrepResult
from rayprep.model.run_files import RunRecord
from rayprep.model.stages import StageName
from rayprep.report.page.shipments import Spared

_VERSIONS = {
    "GPU": "device_name",
    "GPUs a host": "gpu_count",
    "driver": "driver_version",
    "CUDA": "cuda",
    "nvcc": "nvcc",
    "Python": "python",
    "torch": "torch_version",
    "Triton": "triton_version",
    "SGLang": "sglang_version",
    "FlashInfer": "flashinfer_version",
    "DeepGEMM": "deep_gemm_version",
    "transformers": "transformers_version",
}

Facts = tuple[tuple[str, str], ...]


def unfinished(record: RunRecord) -> str:
    """What a run that has not ended says instead of an end; empty for one that has."""
    if record.result.run.finished_at:
        return ""
    seen = f", last heard of at {record.last_ts}" if record.last_ts else ""
    return f"This run has not ended{seen}: it goes on, or its driver was killed. What follows is as far as it had come."


def facts_of(record: RunRecord, spared: Spared) -> Facts:
    result = record.result
    facts = _host_facts(result) if isinstance(result, PrepResult) else _fleet_facts(result)
    return facts + ((("compile time avoided", duration(spared.total_s)),) if spared.by_host else ())


def _host_facts(result: PrepResult) -> Facts:
    run = result.run
    return (
        ("model", run.model_slug),
        ("tensor parallel", str(run.tp)),
        ("host", run.host),
        ("started", run.started_at),
        ("ended", run.finished_at or "-"),
        ("duration", duration(run.duration_s)),
        ("rayprep", run.rayprep_version),
    )


def _fleet_facts(fleet: FleetResult) -> Facts:
    run = fleet.run
    waves = "hosts: " + ", ".join(f"{len(wave):,}" for wave in fleet.waves)
    facts = (
        ("model", run.model),
        ("tensor parallel", str(run.tp)),
        ("cluster", run.address),
        ("started", run.started_at),
        ("ended", run.finished_at or "-"),
        ("duration", duration(run.duration_s)),
        ("waves", waves if len(fleet.waves) > 1 else ""),
        ("stopped early", fleet.stopped),
        ("rayprep", run.rayprep_version),
        ("Ray", run.ray_version),
    )
    return tuple((name, value) for name, value in facts if value)


def endings_of(record: RunRecord) -> Facts:
    """How each stage and the proof ended: `1 error, 6 noop, 1 ok`, or on a single host just `ok`."""
    found: dict[str, list[str]] = {name: [] for name in (*StageName, VERIFY)}
    for known in record.hosts.values():
        for stage, status in known.stages.items():
            found[stage].append(status.value)
        found[VERIFY] += [known.verify] if known.verify else []
    many = len(record.hosts) > 1
    return tuple(
        (
            name,
            ", ".join(f"{count:,} {status}" if many else status for status, count in sorted(Counter(endings).items())),
        )
        for name, endings in found.items()
        if endings
    )


def versions_of(record: RunRecord) -> Facts:
    """Each value, with how many hosts have it where they differ."""
    signatures = [result.run.signature for result in record.results.values()]
    found = []
    for name, field in _VERSIONS.items():
        counts = Counter(getattr(each, field) for each in signatures).most_common()
        if len(counts) == 1 and counts[0][0] is not None:
            found.append((name, str(counts[0][0])))
        elif len(counts) > 1:
            found.append((name, ", ".join(f"{value or 'none'} ({counted(count, 'host')})" for value, count in counts)))
    return tuple(found)
