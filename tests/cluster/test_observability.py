"""A container run under Debian's Prometheus and node_exporter: what it says of itself, what it survives."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayprep.cli.schema import schema
from rayprep.client import find_manifest, needs_prep, read_manifest, read_result
from rayprep.host.container_run import read_container_run
from rayprep.host.layout import Layout
from rayprep.host.prometheus import probe
from rayprep.model.container_manifest import PORTS
from rayprep.model.stages import StageName
from scripts.metrics_catalog import rayprep_part, sglang_part
from tests.cluster.container_run import METRICS, ROOT, RUN_ID, ContainerRun, metrics_server
from tests.conftest import Roots
from tests.needs import needs_namespaces, needs_tool
from tests.processes import named, wait_for

FOLDER = ROOT / "cluster" / "observability"
CATALOG = (FOLDER / "metrics_catalog.final.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((FOLDER / "warmup-dashboard.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
RENAMED = {
    "engine_startup_time": ',phase="tokenizer_e2e"}',
    "engine_load_weights_time": ',phase="load_weight"}',
}
"""Metrics of SGLang up to 0.5.16 -> the phase of sglang:startup_time_seconds that they are from 0.5.17 on."""
needs_telemetry = [needs_tool("prometheus"), needs_tool("prometheus-node-exporter")]


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerRun]:
    """One that runs for all tests that only look."""
    run = ContainerRun(tmp_path_factory.mktemp("a run"))
    run.start()
    try:
        run.wait_until_ready()
        yield run
    finally:
        run.end()
        assert run.left() == []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ContainerRun]:
    run = ContainerRun(tmp_path / "a run")
    try:
        yield run
    finally:
        if run.process:
            run.end(signal.SIGKILL)
        for process in run.left():
            process.kill()


def ask(run: ContainerRun, query: str) -> list[dict[str, object]]:
    """What Prometheus answers to an instant query. Fails where it refuses it."""
    url = f"http://127.0.0.1:{9090 + run.port_base}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        result: list[dict[str, object]] = json.load(answer)["data"]["result"]
        return result


class TestRun:
    pytestmark = needs_telemetry

    def test_the_pointer_leads_to_a_manifest_that_fits_its_schema(self, container: ContainerRun) -> None:
        import jsonschema

        manifest = container.manifest
        jsonschema.validate(manifest, schema("container_run_meta"), jsonschema.Draft202012Validator)
        assert {name: each["port"] - container.port_base for name, each in manifest["services"].items()} == PORTS
        assert manifest["session_log"]["host_path"] == f"/home/me/telemetry/logs/{RUN_ID}.log"
        assert manifest["stopped_at"] is None
        sourced = subprocess.run(
            ["sh", "-ec", '. "$1"; echo "$CONTAINER_RUN_META_JSON"; echo "$CONTAINER_RUN_META_JSON_HOST"', "sh",
             container.pointer],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        inside, on_host = sourced.stdout.splitlines()
        assert inside == str(container.manifest_path)
        assert on_host == f"/home/me/telemetry/container_runs/{RUN_ID}/container_run_meta.json"

    def test_what_is_there_is_live_and_what_is_not_has_a_warning(self, container: ContainerRun) -> None:
        assert container.surfaces == {
            "prometheus": ("live", None),
            "node_exporter": ("live", None),
            "sglang_metrics": ("expected", None),
            "jaeger": ("absent", "jaeger-all-in-one is not installed"),
            "dcgm_exporter": ("absent", "dcgm-exporter is not installed"),
            "tracing": ("absent", "jaeger, which would keep it, is absent"),
        }
        assert container.manifest["warnings"] == [
            f"{name}: {warning}" for name, (_, warning) in container.surfaces.items() if warning
        ]

    def test_the_probe_counts_the_samples_of_a_warm_up_server(self, container: ContainerRun) -> None:
        began = time.time()
        manifest = read_container_run(container.telemetry)
        assert manifest is not None
        before = probe(manifest, "unused", began, time.time())
        assert (before.ok, before.sample_count, before.reason) == (False, 0, "no_samples")
        with metrics_server(30999 + container.port_base):
            wait_for(lambda: probe(manifest, "unused", began, time.time()).ok, "samples in Prometheus")
            found = probe(manifest, "unused", began, time.time())
        assert found.sample_count >= 1
        assert found.reason is None
        assert found.with_run_filter == f'increase(sglang:prompt_tokens_total{{container_run="{RUN_ID}"}}[30s])'
        another = manifest.model_copy(update={"run_id": "container-run-another"})
        assert not probe(another, "unused", began, time.time()).ok, "its samples are not another run's"

    @pytest.mark.parametrize("expression", EXPRESSIONS)
    def test_prometheus_understands_the_dashboard(self, container: ContainerRun, expression: str) -> None:
        ask(container, expression.replace("$container_run", RUN_ID))

    def test_the_node_metrics_of_the_catalog_are_real(self, container: ContainerRun) -> None:
        named = {name for name in re.findall(r"^\| `(node_\w+)`", CATALOG, re.MULTILINE) if "disk" not in name}
        wait_for(lambda: ask(container, "node_load1"), "a scrape of node_exporter")
        assert len(named) > 5
        assert {name for name in named if not ask(container, name)} == set()

    def test_a_program_that_dies_is_started_again(self, container: ContainerRun) -> None:
        port = f"--web.listen-address=127.0.0.1:{9100 + container.port_base}"

        def exporter() -> list[psutil.Process]:
            return named(container.left(), port)

        (first,) = exporter()
        first.kill()
        wait_for(lambda: [process for process in exporter() if process != first], "another node_exporter")
        said = "[init-run] node_exporter ended with status 137 and is started again"
        wait_for(lambda: said in container.log, "tee to write what was said")

    def test_rayprep_in_it_works_for_its_run_and_tells_its_manifest(self, container: ContainerRun) -> None:
        added = {**container.manifest, "slice_bench": {"seen": True}}
        container.manifest_path.write_text(json.dumps(added), encoding="utf-8")
        roots = Roots(container.base, {"HOST_TELEMETRY_ROOT": str(container.telemetry)})
        snapshot = roots.run("snapshot", "--manifest", str(container.manifest_path))
        assert snapshot.returncode == 0, snapshot.stderr
        text = container.manifest_path.read_text(encoding="utf-8")
        assert roots.run("snapshot", "--if-missing", "--manifest", str(container.manifest_path)).returncode == 0
        assert container.manifest_path.read_text(encoding="utf-8") == text, "it has one"
        start = container.manifest["profile_cache"]["start"]
        assert start["torchinductor"]["path"] == "caches/torchinductor", "relative to the host's home"
        assert start["profiles_root"] == "/home/me/caches"

        done = roots.run("ensure", "--model", "tiny-dense", "--device", "cpu", "--skip", "inductor")
        assert done.returncode == 0, done.stderr
        run = roots.result(RUN_ID)["run"]
        assert run["session_log"]["host_path"] == f"/home/me/telemetry/logs/{RUN_ID}.log"
        assert run["settings"]["warmup_port"] == 30999 + container.port_base
        assert "OPTIMIZE_JSON" in container.log
        after = container.manifest
        assert after["slice_bench"] == {"seen": True}
        told = after["optimizations"]
        assert "inductor" not in told
        assert {(each["status"], each["reason"], each["size_delta_bytes"]) for each in told.values()} == {
            ("skipped", "no_gpu", None)
        }

        manifest = read_manifest(find_manifest({"HOST_TELEMETRY_ROOT": str(container.telemetry)}))
        assert needs_prep(manifest, "tiny-dense") == {StageName.INDUCTOR: "no_completion"}
        assert needs_prep(manifest, "tiny-moe")[StageName.INDUCTOR] == "no_completion"
        found = read_result(manifest)
        assert found is not None
        assert found.run.run_id == RUN_ID


class TestFaults:
    @needs_tool("setpriv")
    def test_a_taken_port_and_a_refused_capability_stop_nothing(self, own: ContainerRun) -> None:
        own.hide_all_but_tools()
        own.add("prometheus", "#!/bin/sh\nexit 1\n")
        own.add("node_exporter", "#!/bin/sh\necho cannot open the file >&2\nexit 7\n")
        own.add("dcgm-exporter", f"#!{sys.executable}\n{LISTENER}")
        own.wrapper = ("/usr/bin/setpriv", "--bounding-set=-sys_admin") if os.getuid() == 0 else ()
        with socket.create_server(("127.0.0.1", 9090 + own.port_base)):
            own.start("sh", "-c", "exit 5", PATH=str(own.programs))
            status, said = own.end_by_itself()
        assert status == 5, said
        port = 9090 + own.port_base
        assert own.surfaces["prometheus"] == ("degraded", f"port {port} is taken by another program")
        assert own.surfaces["sglang_metrics"] == ("degraded", "prometheus, which would keep it, is degraded")
        assert own.surfaces["node_exporter"] == ("degraded", "it ended with status 7: cannot open the file")
        if own.wrapper:
            state, warning = own.surfaces["dcgm_exporter"]
            assert state == "degraded"
            assert warning is not None
            assert "--cap-add SYS_ADMIN" in warning
        assert own.manifest["stopped_at"] is not None
        assert own.left() == []

    @needs_tool("setpriv")
    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
    def test_a_root_that_is_shared_stays_whose_it_is(self) -> None:
        """Below a folder that every user can enter."""
        with tempfile.TemporaryDirectory(dir="/tmp") as base:
            Path(base).chmod(0o755)
            run = ContainerRun(Path(base, "a run"))
            run.borrow_script()
            run.hide_all_but_tools()
            run.add("rayprep", "#!/bin/sh\n")
            for folder in (run.telemetry, run.telemetry / "logs", run.telemetry / "jaeger"):
                folder.mkdir()
                folder.chmod(0o2777)
            for folder in (run.telemetry, run.telemetry / "logs"):
                os.chown(folder, 4400, 4400)
            run.start("sh", "-c", ":", PATH=str(run.programs), RUN_FILE_UID="4321", RUN_FILE_GID="4322")
            status, said = run.end_by_itself()
            assert status == 0, said
            owners = {path.name: path.stat().st_uid for path in (run.telemetry, *run.telemetry.iterdir())}
            theirs = {"telemetry": 4400, "logs": 4400}
            assert owners == {**theirs, "prometheus": 4321, "jaeger": 4321, "container_runs": 4321}
            assert {path.stat().st_uid for path in run.telemetry.rglob("*") if RUN_ID in str(path)} == {4321}

    @pytest.mark.parametrize("name", ["logs", "prometheus", "container_runs"])
    def test_a_link_in_the_telemetry_root_is_refused(self, own: ContainerRun, name: str) -> None:
        own.telemetry.mkdir()
        (own.telemetry / name).symlink_to(own.profiles)
        own.start("true")
        status, said = own.end_by_itself()
        assert status == 3
        (line,) = said.splitlines()
        assert f"{own.telemetry}/{name} is a link, which is not followed" in line

    @pytest.mark.slow
    def test_programs_that_do_not_answer_are_waited_for_together(self, own: ContainerRun) -> None:
        own.hide_all_but_tools()
        for name in ("prometheus", "jaeger-all-in-one", "node_exporter", "dcgm-exporter"):
            own.add(name, "#!/bin/sh\nexec sleep 600\n")
        own.start(PATH=str(own.programs))
        wait_for(own.pointer.exists, "the pointer, which one after another would take two minutes", timeout_s=90)
        assert own.surfaces["jaeger"] == (
            "degraded",
            f"it has not answered on port {16686 + own.port_base} within 30 s",
        )
        assert {status for status, _ in own.surfaces.values()} == {"degraded"}
        assert own.end()[0] == 128 + signal.SIGTERM
        assert own.left() == []

    def test_sigterm_in_the_middle_leaves_nothing(self, own: ContainerRun) -> None:
        own.telemetry.mkdir()
        own.pointer.write_text("CONTAINER_RUN_META_JSON=/of/an/old/run.json\n", encoding="utf-8")
        own.add("prometheus", '#!/bin/sh\ntouch "$TELEMETRY_ROOT/started"\nexec sleep 600\n')
        own.start()
        wait_for((own.telemetry / "started").exists, "the start of Prometheus")
        status, said = own.end()
        assert status == 128 + signal.SIGTERM, said
        assert not own.pointer.exists(), "an old run's would be taken for this one's"
        assert not own.manifest_path.exists()
        assert own.left() == []
        assert said in own.log

    @needs_namespaces()
    def test_a_read_only_root_is_said_in_one_line(self, own: ContainerRun) -> None:
        own.telemetry.mkdir()
        script = (
            f'mount --bind "{own.telemetry}" "{own.telemetry}"; mount -o remount,bind,ro "{own.telemetry}"; exec "$@"'
        )
        own.wrapper = ("unshare", "-rm", "sh", "-ec", script, "sh")
        own.start()
        status, said = own.end_by_itself()
        assert status == 3
        (line,) = said.splitlines()
        assert line.startswith("init-run: error: cannot create directory ")
        assert f"{own.telemetry}/logs" in line
        assert "Read-only file system" in line

    @pytest.mark.parametrize(
        ("name", "value"),
        [("PORT_BASE", "99999"), ("PORT_BASE", "010"), ("CONTAINER_RUN_ID", "../up"), ("RUN_FILE_UID", "me"),
         ("LISTEN_ADDRESS", "example.org")],
    )  # fmt: skip
    def test_a_wrong_variable_is_named(self, own: ContainerRun, name: str, value: str) -> None:
        own.start(**{name: value})
        status, said = own.end_by_itself()
        assert (status, len(said.splitlines())) == (2, 1)
        assert f"{name} '{value}'" in said
        assert not own.telemetry.exists()

    def test_without_rayprep_there_is_no_manifest_and_no_run(self, own: ContainerRun) -> None:
        own.hide_all_but_tools()
        own.add("rayprep", "#!/bin/sh\necho no module named rayprep >&2\nexit 1\n")
        own.start(PATH=str(own.programs))
        status, _ = own.end_by_itself()
        assert status == 3
        assert "no module named rayprep" in own.log
        assert own.left() == []

    def test_what_has_left_its_group_does_not_hold_up_the_end(self, own: ContainerRun) -> None:
        own.hide_all_but_tools()
        own.add("rayprep", "#!/bin/sh\n")
        own.add("stray", f"#!{sys.executable}\nimport time\nprint('strayed', flush=True)\ntime.sleep(600)\n")
        command = f"setsid stray & until /usr/bin/grep -q strayed '{own.telemetry}'/logs/*; do sleep 0.05; done; exit 4"
        own.start("sh", "-c", command, PATH=str(own.programs))
        status, said = own.end_by_itself()
        assert status == 4, said
        assert "[init-run] ended with status 4" in own.log
        (stray,) = own.left()
        assert "stray" in " ".join(stray.cmdline())


LISTENER = """
import socket, sys, time
host, _, port = sys.argv[sys.argv.index("--address") + 1].rpartition(":")
with socket.create_server((host, int(port))):
    time.sleep(600)
"""
"""Stands in for dcgm-exporter, which needs a GPU: it only listens where it is told to."""


def part_of_catalog(name: str) -> str:
    return CATALOG.partition(f"<!-- {name}: begin -->\n")[2].partition(f"<!-- {name}: end -->")[0]


class TestWhatIsShipped:
    def test_the_catalog_has_what_sglang_answers(self) -> None:
        assert part_of_catalog("sglang") == sglang_part(METRICS.read_text(encoding="utf-8"))

    def test_the_catalog_has_what_rayprep_writes(self) -> None:
        assert part_of_catalog("rayprep") == rayprep_part()

    @pytest.mark.parametrize("expression", EXPRESSIONS)
    def test_every_metric_of_the_dashboard_is_in_the_catalog(self, expression: str) -> None:
        names = set(re.findall(r"\b(?:sglang:|rayprep_|ray_rayprep_|node_|DCGM_)\w+", expression))
        known = set(re.findall(r"^\| `([^`]+)`", CATALOG, re.MULTILINE))
        assert names
        plain = {name.removeprefix("ray_").removesuffix("_bucket") for name in names}
        assert plain <= known
        assert 'container_run=~"$container_run"' in expression

    @pytest.mark.parametrize(("old", "new"), sorted(RENAMED.items()))
    def test_a_panel_fills_whether_the_server_has_the_old_name_or_the_new(self, old: str, new: str) -> None:
        assert any(f"sglang:{old}{{" in expression and new in expression for expression in EXPRESSIONS)

    @needs_tool("promtool")
    def test_prometheus_takes_its_configuration(self, tmp_path: Path) -> None:
        text = (FOLDER / "prometheus.yml.tmpl").read_text(encoding="utf-8")
        filled = re.sub(r"@(\d+)@", r"\1", text).replace("@CONTAINER_RUN@", "run").replace("@SCRAPE_INTERVAL@", "5s")
        assert filled.count("@") == 0, [line for line in filled.splitlines() if "@" in line]
        (tmp_path / "prometheus.yml").write_text(filled, encoding="utf-8")
        check: list[str | Path] = ["promtool", "check", "config", tmp_path / "prometheus.yml"]
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_paths_have_both_names_from_one_place(self, container: ContainerRun) -> None:
        layout = Layout(container.profiles, container.telemetry)
        assert layout.located(container.profiles / "triton" / "a").host_path == "/home/me/caches/triton/a"
        assert layout.located(Path("/elsewhere")).host_path == "/elsewhere"
        outside = Layout(Path("/home/me/caches"), Path("/home/me/telemetry"))
        assert outside.located(Path("/home/me/caches/a")).host_path == "/home/me/caches/a"
