"""The metrics file, as Prometheus' own parser reads it."""

import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayprep.model.metrics import HOSTS, METRICS, SHIPPED, STAGE_DURATION
from rayprep.report.metrics_file import add_to_metrics_file
from tests.conftest import ENSURE_TINY, Built, Roots
from tests.needs import needs_torch


def read(path: Path) -> dict[tuple[str, ...], float]:
    families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    types = {family.name: family.type for family in families}
    assert types == {each.name.removesuffix("_total"): "counter" if each.is_counter else "gauge" for each in METRICS}
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_each_run_adds_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prometheus" / "rayprep.prom"
    add_to_metrics_file(path, [SHIPPED.sample(10, "a"), HOSTS.sample(1, "failed"), SHIPPED.sample(1, 'odd "name"\\')])
    add_to_metrics_file(path, [SHIPPED.sample(5, "a"), HOSTS.sample(0, "failed")])
    assert read(path) == {
        (SHIPPED.name, "a"): 15,
        (SHIPPED.name, 'odd "name"\\'): 1,
        (HOSTS.name, "failed"): 0,
    }
    assert {each.name for each in path.parent.iterdir()} - {"rayprep.lock"} == {"rayprep.prom"}


@pytest.mark.parametrize(
    "left",
    [
        pytest.param("# \n" * (1 << 20), id="large"),
        *("{half", "\x00", f'{SHIPPED.name}{{gone="x"}} 3\n', "# TYPE other gauge\nother 1\n", ""),
        pytest.param(f'# TYPE {SHIPPED.name}{" " * (1 << 19)}counter\n{SHIPPED.name}{{host="a"}} 3\n', id="long line"),
        *(f'{SHIPPED.name}{{host="a"}} {value}\n' for value in ("NaN", "+Inf", "1e999", "9" * 400)),
    ],
)
def test_what_is_none_of_ours_is_written_anew(tmp_path: Path, left: str) -> None:
    path = tmp_path / "rayprep.prom"
    path.write_text(left, encoding="utf-8")
    started = time.monotonic()
    add_to_metrics_file(path, [STAGE_DURATION.sample(1.5, "a", "serve", "ok")])
    assert time.monotonic() - started < 10
    assert read(path) == {(STAGE_DURATION.name, "a", "serve", "ok"): 1.5}


@pytest.mark.ray
@pytest.mark.torch
@needs_torch()
def test_a_run_leaves_its_metrics(built: Built) -> None:
    """One of two runs has built, and the other has waited for it."""
    found = read(built.roots.telemetry / "prometheus" / "rayprep.prom")
    host = built.roots.result(built.run_id)["run"]["host"]
    assert found[("rayprep_stage_duration_seconds", host, "inductor", "ok")] > 0
    assert found[("rayprep_kernels_built_total", host, "inductor")] == 1
    assert found[("rayprep_kernels_reused_total", host, "inductor")] >= 1
    waited = [built.roots.result(run_id)["waited_s"] for run_id in (built.run_id, built.waiter)]
    assert waited[1] > 1
    assert found[("rayprep_lease_wait_seconds_total", host)] >= sum(waited) - 1e-3
    assert found[("rayprep_hosts", "ready")] == 1, "without a GPU nothing is proved"


def test_a_file_that_cannot_be_written_is_a_warning(built: Built, roots: Roots) -> None:
    built.copy_to(roots)
    (roots.telemetry / "prometheus" / "rayprep.prom").mkdir(parents=True)
    done = roots.run("ensure", *ENSURE_TINY, "--run-id", "unmeasured")
    assert done.returncode == 0, done.stderr
    assert "rayprep.prom cannot be written: Is a directory" in done.stdout
    assert "Traceback" not in done.stderr
