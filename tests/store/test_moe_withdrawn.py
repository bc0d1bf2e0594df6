"""Configs that a server died of: where they go, what comes in their place, and that they do not come back."""

import errno
import os
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.layout import Layout, clear_scratch
from rayprep.model.blame import Blame
from rayprep.model.caches import CacheName
from rayprep.model.stages import StageName
from rayprep.store import aside
from rayprep.store.aside import Aside
from rayprep.store.completions import read_completions, write_completion
from rayprep.store.moe_folder import digest_of, kept_copies
from rayprep.store.moe_withdrawn import (
    Withdrawal,
    refuse_withdrawn,
    release,
    tuned_files,
    withdraw,
    withdrawal_of,
)
from tests.model.samples import completion, identity

MOE = StageName.MOE_TUNE
DIGEST = "0123456789abcdef"
FOLDER = "moe_configs/configs/triton_3_6_0"
UP, DOWN, OTHER = (f"{FOLDER}/E=8,N=64{ending}.json" for ending in ("", "_down", ",dtype=fp8_w8a8"))
OURS = {UP: b'{"1": {}}\n', DOWN: b'{"2": {}}\n', OTHER: b'{"3": {}}\n'}
REASON = "a server died of out of resource: shared memory"


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """With three configs of ours, and an SGLang that ships another one in the place of the first."""
    shipped = tmp_path / "lib/sglang/srt/layers/moe/moe_runner/triton_utils/configs/triton_3_6_0"
    shipped.mkdir(parents=True)
    (tmp_path / "lib/sglang/__init__.py").touch()
    (shipped / Path(UP).name).write_bytes(b"shipped")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    layout = Layout(tmp_path / "profiles", tmp_path / "telemetry")
    for path, content in OURS.items():
        (layout.profiles / path).parent.mkdir(parents=True, exist_ok=True)
        (layout.profiles / path).write_bytes(content)
    return layout


def lists(layout: Layout, slug: str, *paths: str) -> Path:
    """A completion that lists these."""
    artifacts = {path: (len(OURS[path]), digest_of(OURS[path])) for path in paths}
    return write_completion(layout, completion(MOE, identity=identity(model_slug=slug), artifacts=artifacts))


def link(layout: Layout, slug: str, path: str) -> Path:
    place = layout.cache(CacheName.MOE_CONFIGS) / "configs" / "active" / f"{slug}.json"
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(os.path.relpath(layout.profiles / path, place.parent))
    return place


def take_back(layout: Layout, *paths: str) -> Withdrawal:
    """As a server's second try does."""
    gone = Aside(layout, Blame(cache=CacheName.MOE_CONFIGS, paths=paths), before=0.0)
    record = withdraw(layout, DIGEST, gone.moved, "rayprep", REASON)
    assert set(gone.settle()) == set(paths)
    clear_scratch(layout)
    return record


def contents(layout: Layout) -> dict[str, bytes]:
    files = (path for path in layout.profiles.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(layout.profiles).as_posix(): path.read_bytes() for path in files}


def test_what_a_server_died_of_is_set_aside_and_nothing_else_is_touched(layout: Layout) -> None:
    gone, kept = lists(layout, "mixtral", UP, DOWN), lists(layout, "qwen3", OTHER)
    links = {slug: link(layout, slug, path) for slug, path in (("mixtral", DOWN), ("same", UP), ("qwen3", OTHER))}
    assert tuned_files(layout) == OURS.keys()
    before = contents(layout)

    take_back(layout, UP, DOWN)

    after = contents(layout)
    home = f"moe_configs/tuning/{DIGEST}.withdrawn"
    assert REASON.encode() in after.pop(f"{home}/reason.json")
    for path in (UP, DOWN, gone.relative_to(layout.profiles).as_posix()):
        del before[path]
    withdrawn = {f"{home}/{Path(path).name}": OURS[path] for path in (UP, DOWN)}
    assert after == {**before, **withdrawn, UP: b"shipped"}
    assert kept.exists()
    assert [slug for slug, place in links.items() if place.is_symlink()] == ["same", "qwen3"], "one dangled"
    assert tuned_files(layout) == {OTHER}


def test_every_completion_that_lists_one_of_them_goes(layout: Layout) -> None:
    """The file is the model's, whatever flags a request has."""
    for slug, paths in (("one", (UP,)), ("both", (UP, DOWN)), ("none", (OTHER,))):
        lists(layout, slug, *paths)
    take_back(layout, UP, DOWN)
    assert [left.identity.model_slug for left in read_completions(layout, MOE)[0]] == ["none"]


def test_the_reason_is_kept_until_another_config_is_there(layout: Layout) -> None:
    assert withdrawal_of(layout, DIGEST) is None
    release(layout, DIGEST, "rayprep")  # of nothing
    record = take_back(layout, UP)
    assert withdrawal_of(layout, DIGEST) == record
    assert withdrawal_of(layout, "f" * 16) is None, "another tuning"
    release(layout, DIGEST, "/sglang/tuning.py")
    assert withdrawal_of(layout, DIGEST) == record, "the tuner that made it would make it again"
    release(layout, DIGEST, "rayprep")
    assert withdrawal_of(layout, DIGEST) is None
    assert not list(layout.cache(CacheName.MOE_CONFIGS).glob("tuning/*"))


def test_what_was_withdrawn_is_refused_and_all_else_is_not(layout: Layout) -> None:
    refuse_withdrawn(layout, DIGEST, list(OURS.values()))
    take_back(layout, UP, DOWN)
    for again in ([OURS[UP]], [OURS[OTHER], OURS[DOWN]]):
        with pytest.raises(StageError, match=REASON) as caught:
            refuse_withdrawn(layout, DIGEST, again)
        assert caught.value.error_type is ErrorType.WITHDRAWN
    refuse_withdrawn(layout, DIGEST, [OURS[OTHER]])
    refuse_withdrawn(layout, "f" * 16, [OURS[UP]])


def test_a_users_own_in_the_place_of_ours_outlives_the_withdrawal(layout: Layout) -> None:
    lists(layout, "mixtral", UP)
    (layout.profiles / UP).write_bytes(b'{"9": {}}')
    take_back(layout, UP)
    release(layout, DIGEST, "rayprep")
    assert [copy.read_bytes() for copy in kept_copies(layout, layout.profiles / UP)] == [b'{"9": {}}']


def test_where_nothing_can_come_in_its_place_it_stays(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    lists(layout, "mixtral", UP)
    before = contents(layout)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(aside, "put_back_shipped", full)
    with pytest.raises(OSError, match="No space"):
        Aside(layout, Blame(cache=CacheName.MOE_CONFIGS, paths=(UP,)), before=0.0)
    clear_scratch(layout)
    assert contents(layout) == before


@pytest.mark.parametrize("damage", [b"", b"{}", b"[" * 100_000, b"\0" * 20])
def test_a_reason_that_cannot_be_read_is_none(layout: Layout, damage: bytes) -> None:
    take_back(layout, UP)
    (layout.cache(CacheName.MOE_CONFIGS) / "tuning" / f"{DIGEST}.withdrawn" / "reason.json").write_bytes(damage)
    assert withdrawal_of(layout, DIGEST) is None
    refuse_withdrawn(layout, DIGEST, [OURS[UP]])


def test_a_withdrawal_through_a_link_touches_nothing_behind_it(layout: Layout, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tuning = layout.cache(CacheName.MOE_CONFIGS) / "tuning"
    tuning.symlink_to(outside)
    with pytest.raises(OSError, match="link"):
        take_back(layout, UP)
    assert list(outside.iterdir()) == []
