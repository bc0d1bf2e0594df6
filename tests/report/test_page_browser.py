"""The report page in a real browser: what a person sees of it, and that it asks for nothing but itself."""

import time
from pathlib import Path

from rayprep.base.errors import ErrorType
from rayprep.host.run_reader import read_run
from rayprep.model.fleet.odd_hosts import Oddity
from rayprep.model.fleet.rollout import HostPhase
from rayprep.model.stages import StageName
from rayprep.report.page.page import render
from tests.needs import needs_browser
from tests.report.browser import Tab, open_tab
from tests.report.left_runs import HINT, LOG_TAIL, LeftRun, broken, fleet, single

pytestmark = needs_browser()

HOSTS = tuple(f"gpu-{number}" for number in range(8))
FOR_ALL = ["Failures", "Summary", "Timeline", "Built", "Warnings", "Hosts"]
FOR_FLEETS = ["Shipped from host to host", "Odd hosts", "Groups and stores"]
HOSTILE = (
    "<script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><a href='https://example.org/'>click</a>",
    "</style></title></svg>{{ 7 * 7 }}{% raw %}",
)


def show(tab: Tab, left: LeftRun) -> None:
    """Renders the page, opens it, and makes sure that it is whole by itself."""
    path = left.telemetry / "page.html"
    path.write_text(render(read_run(left.write().layout, "run-1")), encoding="utf-8")
    tab.open(path)
    assert tab.requests == [path.as_uri()]
    assert tab.problems == []
    # For whoever changes the page and wants to look at it: it lies in pytest's folder of this test.
    tab.screenshot(left.telemetry / "page.png")


def test_a_fleet_with_failures(tmp_path: Path) -> None:
    with open_tab() as tab:
        show(tab, fleet(tmp_path, HOSTS, failed=HOSTS[3:5], lost=HOSTS[6:7]))
        headings = tab.visible("h2")
        assert headings[0] == "Failures"
        assert set(headings) == {*FOR_ALL, *FOR_FLEETS}
        assert tab.visible(".states .state") == ["✗ 1 host lost", "✗ 2 hosts failed", "✓ 5 hosts verified"]
        alike, lost = tab.visible("#failures article")
        for text in ("flashinfer: toolchain_mismatch", "2 hosts: gpu-3, gpu-4", HINT, LOG_TAIL[-1]):
            assert text in alike
        assert "gpu-6 has not answered for 60 s" in lost
        assert "flashinfer 2 error, 4 noop, 1 ok" in tab.visible("#summary dl")[1]
        assert tab.visible("#spared") == ["17 min 10 s"]
        assert "gpu-0 3 hosts deep_gemm, flashinfer, serve 7,404 933.0 MiB" in tab.visible("#shipped tr")
        assert tab.visible("#built td") == ["gpu-0", "deep_gemm 18.2 s, flashinfer 1 min 32 s, serve 1 min 02 s"]
        assert "driver_version 570.1 gpu-7 580.65.06 (7 hosts) nothing: for information" in tab.visible("#odd tr")
        assert tab.visible("#groups td")[-1] == "7 stores shared: gpu-3, gpu-4"
        assert len(tab.visible("#warnings li")) == 2


def test_the_timeline_is_readable_without_colour(tmp_path: Path) -> None:
    with open_tab() as tab:
        show(tab, fleet(tmp_path, HOSTS, failed=HOSTS[3:5], lost=HOSTS[6:7]))
        kinds = ["deep_gemm", "flashinfer", "serve", "receive", "verify"]
        assert tab.visible(".legend span") == ["0 s is 2025-10-09T01:12:03Z", *kinds, "✗ failed", "… no end was heard"]
        assert [name[:5] for name in tab.visible(".timeline .host")] == list(HOSTS)
        labels = tab.visible(".timeline .label")
        assert {"flashinfer 1 min 32 s", "verify 35.0 s", "✗ flashinfer 40.0 s", "… receive", "R"} <= set(labels)
        hatches = tab.evaluate("new Set([...document.querySelectorAll('.hatch')].map((e) => e.getAttribute('d'))).size")
        assert hatches == len(kinds)


def test_a_hosts_section_opens_where_a_link_leads_to_it(tmp_path: Path) -> None:
    with open_tab() as tab:
        show(tab, fleet(tmp_path, HOSTS, failed=HOSTS[3:5]))
        assert len(tab.visible("#hosts summary")) == len(HOSTS)
        assert tab.visible("#hosts table") == []
        tab.evaluate("document.querySelector('#built td a').click()")
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert "flashinfer ✓ ok 1 min 32 s 3 2 1,234 (5.0 MiB)" in tab.visible("#hosts tr")
        assert "verify ✓ ok 35.0 s 0 new files, 0 compile events" in tab.visible("#hosts tr")


def test_one_host(tmp_path: Path) -> None:
    with open_tab() as tab:
        show(tab, single(tmp_path, fails=True))
        assert tab.visible("h2") == FOR_ALL
        assert tab.visible("h1") == ["run-1 ◐ partial"]
        assert LOG_TAIL[-1] in tab.visible("#failures pre")[0]
        assert "toolchain" in tab.text()


def test_a_run_whose_driver_was_killed(tmp_path: Path) -> None:
    with open_tab() as tab:
        show(tab, single(tmp_path, ended=False))
        (notice,) = tab.visible(".notice")
        assert "it goes on, or its driver was killed" in notice
        assert tab.visible("#failures p") == ["✓ None so far."]
        assert "… flashinfer 1 min 00 s" in tab.visible(".timeline .label")


def test_hostile_text_is_text(tmp_path: Path) -> None:
    left = fleet(tmp_path, HOSTILE)
    assert left.fleet is not None
    odd = Oddity(field="cxx", value=HOSTILE[1], hosts=HOSTILE, usual=HOSTILE[2], usual_count=1, binds=())
    run = left.fleet.run.model_copy(update={"model": HOSTILE[3]})
    left.fleet = left.fleet.model_copy(update={"odd": (odd,), "run": run, "warnings": HOSTILE, "stopped": HOSTILE[4]})
    first = left.results.pop(HOSTILE[0])
    stages = {**first.stages, StageName.SERVE: broken(StageName.SERVE, HOSTILE[2], tail=HOSTILE)}
    left.results = {HOSTILE[0]: first.model_copy(update={"stages": stages})}  # the other names are no file's
    hosts = {
        **left.fleet.hosts,
        HOSTILE[0]: left.fleet.hosts[HOSTILE[0]].model_copy(update={"state": HostPhase.FAILED}),
    }
    left.fleet = left.fleet.model_copy(update={"hosts": hosts})
    with open_tab() as tab:
        show(tab, left)
        assert tab.evaluate("document.querySelectorAll('script, img, iframe, a[href*=\":\"]').length") == 0
        assert tab.evaluate("document.querySelectorAll('style, title:not(svg title)').length") == 2
        (failure,) = tab.visible("#failures article")
        assert f"serve: {ErrorType.TOOLCHAIN_MISMATCH}" in failure
        for text in HOSTILE:
            assert text in failure
            assert any(text in each for each in tab.visible("#hosts summary b"))
            assert any(text in each for each in tab.visible("#warnings li"))


def test_a_thousand_hosts(tmp_path: Path) -> None:
    names = [f"gpu-{number:04}" for number in range(1000)]
    left = fleet(tmp_path, names, failed=names[40:80], lost=names[700:703]).write()
    started = time.process_time()
    text = render(read_run(left.layout, "run-1"))
    took = time.process_time() - started
    assert len(text.encode()) < 3 << 20
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    with open_tab() as tab:
        tab.open(page)
        assert tab.requests == [page.as_uri()]
        assert tab.visible(".states .state") == ["✗ 3 hosts lost", "✗ 40 hosts failed", "✓ 957 hosts verified"]
        assert [article.split(":")[0] for article in tab.visible("#failures article")] == ["✗ flashinfer", "✗ the host"]
        assert len(tab.visible(".timeline .host")) == 50
        assert len(tab.visible("#hosts summary")) == 1000
        top = tab.evaluate("document.querySelector('main').getBoundingClientRect().top")
        assert isinstance(top, int | float)
        assert top < 200
        tab.screenshot(tmp_path / "page.png")
    # About 1.5 s of the processor's time, and 0.5 s of loading where nothing else runs.
    assert took < 6, f"made in {took:.1f} s"
    assert tab.loaded_s < 10, f"loaded in {tab.loaded_s:.1f} s"
