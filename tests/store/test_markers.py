"""Markers: that one stands is what counts, whatever is in it."""

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.host.layout import Layout
from rayprep.model.snapshot import PartialInfo
from rayprep.model.stages import StageName
from rayprep.store.markers import Marker, read_markers, remove_marker, standing_since, write_marker
from tests.host.other_user import NOBODY, as_user
from tests.model.samples import MOMENT
from tests.needs import needs_root
from tests.store.caches import layout_in

INDUCTOR, FLASHINFER = StageName.INDUCTOR, StageName.FLASHINFER
MARKER = Marker(owner_pid=7, started_at=MOMENT, run_id="run-1", invocation="0123", host="host-1")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path)


def test_a_marker_lies_where_the_contract_says_and_says_who_and_since_when(layout: Layout) -> None:
    write_marker(layout, "tiny-dense", INDUCTOR, MARKER)
    path = layout.profiles / ".in_progress" / "tiny-dense" / "inductor"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == {"owner_pid": 7, "started_at": MOMENT, "run_id": "run-1", "invocation": "0123", "host": "host-1"}
    info = PartialInfo(owner_pid=7, started_at=MOMENT, model_slug="tiny-dense", stage="inductor")
    assert read_markers(layout) == {("tiny-dense", INDUCTOR): info}


def test_one_that_is_killed_as_it_is_written_has_its_time_already(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what an earlier run left half written would be taken for whole."""
    rename = os.rename

    def killed(source: str, target: str, **folders: int) -> None:
        rename(source, target, **folders)
        raise SystemExit

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(SystemExit):
        write_marker(layout, "a", INDUCTOR, MARKER, 1000.0)
    assert standing_since(layout, INDUCTOR) == 1000.0


def test_one_is_written_while_another_takes_the_folder_along(layout: Layout) -> None:
    """Two stages side by side, of which one ends when the other begins."""

    def come_and_go(stage: StageName) -> None:
        for _ in range(200):
            write_marker(layout, "a", stage, MARKER)
            assert layout.marker("a", stage).exists()
            remove_marker(layout, "a", stage)

    with ThreadPoolExecutor() as pool:
        list(pool.map(come_and_go, (INDUCTOR, FLASHINFER)))
    assert not layout.marker("a", INDUCTOR).parent.exists()


def test_removing_one_leaves_the_others_and_the_last_takes_the_folder(layout: Layout) -> None:
    for stage in (INDUCTOR, FLASHINFER):
        write_marker(layout, "a", stage, MARKER)
    write_marker(layout, "b", INDUCTOR, MARKER)
    remove_marker(layout, "a", INDUCTOR)
    assert set(read_markers(layout)) == {("a", FLASHINFER), ("b", INDUCTOR)}
    remove_marker(layout, "a", FLASHINFER)
    assert [path.name for path in layout.markers.iterdir()] == ["b"]
    remove_marker(layout, "a", FLASHINFER)
    remove_marker(layout, "never", INDUCTOR)


def test_no_folder_is_no_marker(layout: Layout) -> None:
    assert read_markers(layout) == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"owner_pid": "x"}', b'{"owner_pid":7,"started_at":"yesterday"}']
)
def test_a_marker_that_cannot_be_read_still_stands(layout: Layout, content: bytes) -> None:
    write_marker(layout, "tiny-dense", INDUCTOR, MARKER)
    layout.marker("tiny-dense", INDUCTOR).write_bytes(content)
    assert read_markers(layout) == {("tiny-dense", INDUCTOR): PartialInfo(model_slug="tiny-dense", stage="inductor")}


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_whatever_has_a_markers_name_stands(layout: Layout, kind: str) -> None:
    path = layout.marker("tiny-dense", INDUCTOR)
    path.parent.mkdir(parents=True)
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    assert set(read_markers(layout)) == {("tiny-dense", INDUCTOR)}


def test_a_marker_of_a_newer_rayprep_is_read(layout: Layout) -> None:
    write_marker(layout, "a", INDUCTOR, MARKER)
    path = layout.marker("a", INDUCTOR)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "new": [1]}), encoding="utf-8")
    assert read_markers(layout)["a", INDUCTOR].owner_pid == 7


def test_what_is_not_ours_is_left_out(layout: Layout) -> None:
    write_marker(layout, "a", INDUCTOR, MARKER)
    (layout.markers / "a" / "not_a_stage").write_text("", encoding="utf-8")
    (layout.markers / "a" / ".inductor.x1y2.tmp").write_text("", encoding="utf-8")
    (layout.markers / "a_file").write_text("", encoding="utf-8")
    stray = layout.markers / os.fsdecode(b"\xff")
    stray.mkdir()
    (stray / "inductor").write_text("", encoding="utf-8")
    assert set(read_markers(layout)) == {("a", INDUCTOR)}


@needs_root()
@pytest.mark.parametrize("closed", [".in_progress", ".in_progress/a"])
def test_markers_that_cannot_be_seen_are_not_taken_for_none(closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        layout = Layout(Path(folder), Path(folder))
        write_marker(layout, "a", INDUCTOR, MARKER)
        (Path(folder) / closed).chmod(0o700)
        with pytest.raises(HostUnfit, match="cannot be read: Permission denied") as caught:
            as_user(NOBODY, lambda: read_markers(layout))
        assert caught.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED
