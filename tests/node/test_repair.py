"""What a stage must not build upon goes before it builds, and nothing else does."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.records import utc_now
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import Completion
from rayprep.model.stages import StageName
from rayprep.node.repair import Repair, choose, repair
from rayprep.store.completions import read_completions, write_completion
from rayprep.store.entries import group_entries
from rayprep.store.markers import Marker, standing_since, write_marker
from rayprep.store.scan import scan_cache
from tests.conftest import Built, Roots
from tests.needs import needs_torch

NAMES = [f"torchinductor/ab/c{letter}.{kind}" for letter in "abcdef" for kind in ("cpp", "so")]
PATHS = st.sets(st.sampled_from(NAMES))
STAGE = StageName.INDUCTOR


@given(own=PATHS, others=PATHS, wrong=PATHS, suspect=PATHS, rebuild=st.booleans())
def test_the_choice(own: set[str], others: set[str], wrong: set[str], suspect: set[str], rebuild: bool) -> None:
    chosen = choose(own, others, wrong, suspect, rebuild=rebuild)
    mine, theirs, bad, recent = (set(group_entries(paths)) for paths in (own, others, wrong, suspect))
    assert bad <= chosen.removed
    assert recent - mine - theirs <= chosen.removed
    assert not (chosen.removed - bad) & theirs
    if rebuild:
        assert mine <= chosen.removed | chosen.shared
    else:
        assert not (chosen.removed - bad) & mine
        assert not chosen.shared


class Store:
    """A copy of a finished build."""

    def __init__(self, roots: Roots) -> None:
        self.layout = Layout(roots.profiles, roots.telemetry)
        self.own = read_completions(self.layout, STAGE)[0][0]

    def repair(self, *, own: bool = True, rebuild: bool = False) -> Repair:
        scans = [scan_cache(self.layout.profiles, CacheName.TORCHINDUCTOR)]
        since = standing_since(self.layout, STAGE)
        return repair(self.layout, STAGE, self.own if own else None, scans, since, list, rebuild=rebuild)

    def mark(self, since: float, slug: str = "tiny-dense") -> None:
        marker = Marker(owner_pid=1, started_at=utc_now(), run_id="dead", invocation="dead", host="here")
        write_marker(self.layout, slug, STAGE, marker, since)

    @property
    def library(self) -> Path:
        return self.layout.profiles / next(path for path in self.own.artifacts if path.endswith(".main.so"))


pytestmark = [needs_torch(), pytest.mark.ray]


@pytest.fixture
def store(built: Built, roots: Roots) -> Iterator[Store]:
    built.copy_to(roots)
    yield Store(roots)
    shutil.rmtree(roots.profiles)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_what_is_whole_stays(store: Store) -> None:
    store.mark(0.0)
    assert store.repair() == Repair()
    assert all((store.layout.profiles / path).is_file() for path in store.own.artifacts)


def test_a_listed_file_that_an_aborted_rebuild_wrote_half_goes(store: Store) -> None:
    os.truncate(store.library, store.library.stat().st_size // 2)
    store.mark(time.time())
    assert len(store.repair().removed) == 1
    assert not store.library.exists()


def test_a_damaged_file_goes_whoever_lists_it(store: Store) -> None:
    flip(store.library)
    assert len(store.repair(own=False).removed) == 1
    assert not store.library.exists()


def test_of_what_nobody_lists_only_an_aborted_runs_goes(store: Store) -> None:
    old, new = (store.layout.cache(CacheName.TORCHINDUCTOR) / "zz" / f"{name}.so" for name in ("old", "new"))
    old.parent.mkdir()
    for path, mtime in ((old, 1000.0), (new, 3000.0)):
        path.write_bytes(b"half")
        os.utime(path, (mtime, mtime))
    assert store.repair() == Repair()
    store.mark(2000.0, slug="another-model")
    assert {entry for _, entry in store.repair().removed} == {"zz/new"}
    assert old.exists()
    assert not new.exists()


def test_a_marker_keeps_its_time_until_the_repair_is_done(store: Store) -> None:
    store.mark(1000.0)
    store.mark(standing_since(store.layout, STAGE) or 0.0)
    assert standing_since(store.layout, STAGE) == 1000.0
    before = time.time()
    store.repair()
    assert (standing_since(store.layout, STAGE) or 0.0) >= before - 1


def test_a_rebuild_leaves_what_another_completion_lists_and_says_so(store: Store) -> None:
    shared = sorted(store.own.artifacts)[:1]
    other: Completion = store.own.model_copy(
        update={"key": "other-tp1-0123456789abcdef", "artifacts": {path: store.own.artifacts[path] for path in shared}}
    )
    write_completion(store.layout, other)
    done = store.repair(rebuild=True)
    assert done.shared == set(group_entries(shared))
    assert done.removed == set(group_entries(store.own.artifacts)) - done.shared
    assert (store.layout.profiles / shared[0]).exists()
