"""The files below moe_configs: the shipped ones beside ours, and the link to the one in use."""

import json
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from rayprep.host.scan import scan_cache
from rayprep.model.caches import CacheName
from rayprep.model.completion import Completion
from rayprep.model.moe_space import KernelConfig
from rayprep.model.stages import StageName
from rayprep.stages.moe_files import adopt_config, facts_of, link_active, seed, write_config
from tests.model.samples import completion, identity

CONFIG = KernelConfig(BLOCK_SIZE_M=16, BLOCK_SIZE_N=32, BLOCK_SIZE_K=64, GROUP_SIZE_M=1)
NAME = "E=8,N=64,device_name=NVIDIA_H200.json"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "profiles" / "moe_configs").mkdir(parents=True)
    return Layout(tmp_path / "profiles", tmp_path / "telemetry")


def shipped(base: Path, **files: str) -> Path:
    for name, text in files.items():
        path = base / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(text)
    return base


def test_a_new_version_adds_its_own_and_overwrites_nothing(layout: Layout, tmp_path: Path) -> None:
    configs = layout.cache(CacheName.MOE_CONFIGS) / "configs"
    first = shipped(tmp_path / "one", triton_3_6_0__a="first", top="first")
    assert seed(layout, first) == 2
    assert seed(layout, first) == 0
    ours = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    (configs / "triton_3_6_0" / "a.json").write_text("tuned")
    second = shipped(tmp_path / "two", triton_3_6_0__a="second", triton_3_7_0__a="second", top="second")
    (second / "triton_3_6_0" / NAME).write_text("shipped")
    assert seed(layout, second) == 1
    found = {path.relative_to(configs).as_posix(): path.read_text() for path in configs.rglob("*.json")}
    assert found.pop(f"triton_3_6_0/{NAME}") == ours.read_text()
    assert found == {"triton_3_6_0/a.json": "tuned", "triton_3_7_0/a.json": "second", "top.json": "first"}
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


def received(layout: Layout) -> tuple[Path, Completion]:
    path = write_config(layout, "triton_3_6_0", NAME, {1: CONFIG})
    listed = {f"moe_configs/configs/triton_3_6_0/{NAME}": (path.stat().st_size, "sha256:" + "0" * 64)}
    return path, completion(StageName.MOE_TUNE, identity=identity(model_slug="qwen3"), artifacts=listed)


def test_a_host_that_received_the_config_makes_the_link_for_itself(layout: Layout) -> None:
    path, done = received(layout)
    facts = adopt_config(layout, done)
    assert facts and facts.config_file and facts.active_config_link
    assert Path(facts.config_file.container_path) == path
    assert Path(facts.active_config_link.container_path).resolve() == path
    path.unlink()
    assert adopt_config(layout, done) is None


def test_where_no_link_can_be_made_the_config_is_told_all_the_same(layout: Layout) -> None:
    """As on a root that is read-only."""
    path, done = received(layout)
    (path.parents[1] / "active").touch()
    facts = adopt_config(layout, done)
    assert facts and facts.config_file and facts.config_hash
    assert (Path(facts.config_file.container_path), facts.active_config_link) == (path, None)
