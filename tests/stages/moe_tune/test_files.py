"""The files below moe_configs: the shipped ones beside ours, and the link to the one in use."""

import hashlib
import json
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import Completion
from rayprep.model.stages import StageName
from rayprep.sglang.kernel_config import KernelConfig
from rayprep.stages.moe_tune.files import (
    adopt_config,
    config_text,
    facts_of,
    kept_aside,
    link_active,
    place_config,
    seed,
)
from rayprep.store.completions import write_completion
from rayprep.store.moe_folder import kept_copies
from rayprep.store.scan import scan_cache
from tests.model.samples import completion, identity, signature

CONFIG = KernelConfig(BLOCK_SIZE_M=16, BLOCK_SIZE_N=32, BLOCK_SIZE_K=64, GROUP_SIZE_M=1)
NAME = "E=8,N=64,device_name=NVIDIA_H200.json"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "profiles" / "moe_configs").mkdir(parents=True)
    return Layout(tmp_path / "profiles", tmp_path / "telemetry")


def write_config(layout: Layout, folder: str, name: str, entries: dict[int, KernelConfig]) -> Path:
    return place_config(layout, folder, name, config_text(entries))


def shipped(base: Path, **files: str) -> Path:
    for name, text in files.items():
        path = base / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(text)
    return base


def test_a_new_version_adds_its_own_and_overwrites_nothing(layout: Layout, tmp_path: Path) -> None:
    configs = layout.cache(CacheName.MOE_CONFIGS) / "configs"
    first = shipped(tmp_path / "one", triton_3_6_0__a="{}", top="{}")
    assert seed(layout, first) == 2
    assert seed(layout, first) == 0
    ours = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    (configs / "triton_3_6_0" / "a.json").write_text('{"1": {}}')
    second = shipped(tmp_path / "two", triton_3_6_0__a='{"2": {}, "4": {}}', triton_3_7_0__a="{}", top="{}")
    (second / "triton_3_6_0" / NAME).write_text("shipped")
    assert seed(layout, second) == 1
    found = {path.relative_to(configs).as_posix(): path.read_text() for path in configs.rglob("*.json")}
    assert found.pop(f"triton_3_6_0/{NAME}") == ours.read_text()
    assert found == {"triton_3_6_0/a.json": '{"1": {}}', "triton_3_7_0/a.json": "{}", "top.json": "{}"}
    assert not list(configs.rglob("*.tmp"))


def _together(barrier: Barrier, base: Path) -> None:
    layout = Layout(base / "profiles", base / "telemetry")
    config = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    barrier.wait(timeout=30)
    seed(layout, base / "shipped")
    for n in range(100):
        link_active(layout, "m", config.with_name(f"{n % 2}.json"))


def test_two_hosts_may_seed_one_root_at_once(layout: Layout, tmp_path: Path) -> None:
    """Neither asks for the store's lock where the config is here already."""
    source = shipped(tmp_path / "shipped", **{f"triton_3_6_0__{n}": "{}" * 1000 for n in range(50)})
    context = get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_together, args=(barrier, tmp_path)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0]
    home = layout.cache(CacheName.MOE_CONFIGS) / "configs"
    assert {path.read_text() for path in home.rglob("[0-9]*.json") if not path.is_symlink()} == {"{}" * 1000}
    assert seed(layout, source) == 0
    assert not list(home.rglob("*.tmp"))


def test_a_link_where_a_copy_is_made_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    folder = layout.cache(CacheName.MOE_CONFIGS) / "configs"
    folder.mkdir()
    (folder / ".top.json.tmp").symlink_to(victim)
    seed(layout, shipped(tmp_path / "one", top="shipped"))
    assert (victim.read_text(), (folder / "top.json").is_symlink()) == ("theirs", False)


def test_a_config_is_written_as_sglang_reads_it(layout: Layout) -> None:
    path = write_config(layout, "triton_3_6_0", NAME, {64: CONFIG, 1: CONFIG})
    assert path == layout.profiles / "moe_configs/configs/triton_3_6_0" / NAME
    assert list(json.loads(path.read_text()).items()) == [("1", CONFIG.entry()), ("64", CONFIG.entry())]
    facts = facts_of(layout, path, None)
    assert (facts.triton_version, facts.config_hash and len(facts.config_hash)) == ("3.6.0", 71)


def test_the_link_follows_the_last_and_is_no_part_of_the_cache(layout: Layout) -> None:
    for name in ("E=1.json", "E=2.json"):
        link = link_active(layout, "qwen3", write_config(layout, "triton_3_6_0", name, {1: CONFIG}))
    assert link.readlink() == Path("../triton_3_6_0/E=2.json")
    assert link.exists()
    scan = scan_cache(layout.profiles, CacheName.MOE_CONFIGS)
    assert (scan.file_count, scan.links) == (2, 0)


def test_a_link_that_is_right_is_not_written_again(layout: Layout) -> None:
    """On a read-only root a noop would have nothing to say of its config."""
    path = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    first = link_active(layout, "qwen3", path).lstat()
    assert link_active(layout, "qwen3", path).lstat().st_ino == first.st_ino


@pytest.mark.parametrize("damage", ["", "{", "[7]", "\0" * 9])
def test_a_seeded_config_that_is_damaged_is_copied_again(layout: Layout, tmp_path: Path, damage: str) -> None:
    source = shipped(tmp_path / "one", top="{}", other="{}")
    seed(layout, source)
    configs = layout.cache(CacheName.MOE_CONFIGS) / "configs"
    (configs / "top.json").write_text(damage)
    (configs / "other.json").write_text('{"1": {}}')
    assert seed(layout, source) == 1
    assert ((configs / "top.json").read_text(), (configs / "other.json").read_text()) == ("{}", '{"1": {}}')


@pytest.mark.parametrize("link", ["moe_configs", "moe_configs/configs", "moe_configs/configs/triton_3_6_0"])
def test_nothing_is_written_through_a_link(layout: Layout, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = layout.profiles / link
    layout.cache(CacheName.MOE_CONFIGS).rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(OSError, match="plain folders"):
        seed(layout, shipped(tmp_path / "one", triton_3_6_0__a="{}"))
    with pytest.raises(OSError, match="plain folders"):
        write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    assert not list(outside.iterdir())


def test_no_link_is_made_in_a_folder_that_is_one(layout: Layout, tmp_path: Path) -> None:
    path = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    (path.parents[1] / "active").symlink_to(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="plain folders"):
        link_active(layout, "qwen3", path)
    assert set(tmp_path.iterdir()) == before


def test_what_a_user_made_is_kept_before_it_is_written_over(layout: Layout) -> None:
    path = layout.cache(CacheName.MOE_CONFIGS) / "configs" / "triton_3_6_0" / NAME
    path.parent.mkdir(parents=True)
    theirs = ['{"17": {}}', '{"18": {}}']
    for text in (*theirs, theirs[0], "no config"):
        path.write_text(text)
        write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    copies = kept_copies(layout, path)
    assert sorted(copy.read_text() for copy in copies) == theirs
    assert {copy.parent for copy in copies} == {layout.profiles / "moe_configs/kept/triton_3_6_0"}
    assert all(any(str(copy) in warning for copy in copies) for warning in kept_aside(layout, path))
    assert len(kept_aside(layout, path)) == 2
    assert scan_cache(layout.profiles, CacheName.MOE_CONFIGS).file_count == 1, "a copy is no part of the cache"


def test_what_any_completion_lists_or_ships_with_sglang_is_not_kept(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    listed = {f"moe_configs/configs/triton_3_6_0/{NAME}": (path.stat().st_size, digest)}
    write_completion(layout, completion(StageName.MOE_TUNE, artifacts=listed, signature=signature(sm_count=1)))
    write_config(layout, "triton_3_6_0", NAME, {1: CONFIG, 2: CONFIG})
    package = tmp_path / "lib" / "sglang"
    ships = package / "srt/layers/moe/moe_runner/triton_utils/configs/triton_3_6_0"
    ships.mkdir(parents=True)
    (package / "__init__.py").touch()
    (ships / NAME).write_text('{"64": {}}')
    monkeypatch.syspath_prepend(tmp_path / "lib")
    path.write_text('{"64": {}}')
    write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    kept = [copy.read_text() for copy in kept_copies(layout, path)]
    assert all(len(json.loads(text)) == 2 for text in kept), "only that which nothing listed"


def test_where_there_is_none_of_ours_the_file_goes_and_a_users_is_kept(layout: Layout) -> None:
    path = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    listed = {f"moe_configs/configs/triton_3_6_0/{NAME}": (path.stat().st_size, digest)}
    write_completion(layout, completion(StageName.MOE_TUNE, artifacts=listed))
    for theirs in (None, '{"17": {}}'):
        if theirs:
            path.write_text(theirs)
        assert place_config(layout, "triton_3_6_0", NAME, None) == path
        assert not path.exists()
    assert [copy.read_text() for copy in kept_copies(layout, path)] == ['{"17": {}}']
    assert place_config(layout, "triton_3_6_0", NAME, None) == path, "which was not there"


def received(layout: Layout) -> tuple[Path, Completion]:
    path = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    listed = {f"moe_configs/configs/triton_3_6_0/{NAME}": (path.stat().st_size, "sha256:" + "0" * 64)}
    return path, completion(StageName.MOE_TUNE, identity=identity(model_slug="qwen3"), artifacts=listed)


def test_a_host_that_received_the_config_makes_the_link_for_itself(layout: Layout) -> None:
    path, done = received(layout)
    adopted = adopt_config(layout, done)
    assert adopted
    facts = adopted.artifacts
    assert facts.config_file
    assert facts.active_config_link
    assert Path(facts.config_file.container_path) == path
    assert Path(facts.active_config_link.container_path).resolve() == path
    path.unlink()
    assert adopt_config(layout, done) is None


def test_where_no_link_can_be_made_the_config_is_told_all_the_same(layout: Layout) -> None:
    """As on a root that is read-only."""
    path, done = received(layout)
    (path.parents[1] / "active").touch()
    adopted = adopt_config(layout, done)
    assert adopted
    facts = adopted.artifacts
    assert facts.config_file
    assert facts.config_hash
    assert (Path(facts.config_file.container_path), facts.active_config_link) == (path, None)
