"""What lies in `moe_configs` beside the tuned file, as runs of the node treat it."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import pytest

from rayprep.model.result import PrepResult
from rayprep.model.spec import StageOp
from rayprep.store.moe_folder import kept_copies
from tests.needs import needs_torch
from tests.node.serving import LIBRARY, Flags, played, statuses
from tests.node.test_moe_tune import MOE, NAME, OTHERS, SERVE, STAND_IN, MoeHost

pytestmark = [pytest.mark.tuner, needs_torch()]

USERS = '{"17": {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}}'


@dataclass
class StoreHost(MoeHost):
    """Whose SGLang can be replaced by another one."""

    library: Path = field(default=STAND_IN)

    @property
    def environ(self) -> dict[str, str]:
        inherited = super().environ
        return {**inherited, "PYTHONPATH": f"{self.library}{os.pathsep}{inherited['PYTHONPATH']}"}

    def tune(self, *server_args: str, **flags: Unpack[Flags]) -> PrepResult:
        asked = Flags(model=str(self.model), moe_batch_sizes=(1,), moe_strategy="fixed", ops=OTHERS)
        result = self.ensure(*server_args, **(asked | Flags(verify=False, timeout_s=200) | flags))
        assert result.exit_code == 0, result.errors
        return result

    @property
    def configs(self) -> Path:
        return self.cache / "configs"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreHost]:
    yield from played(StoreHost(tmp_path), monkeypatch, LIBRARY, STAND_IN)


@pytest.mark.slow  # it tunes and serves six times
def test_a_users_own_config_is_kept_whenever_ours_takes_its_place(host: StoreHost) -> None:
    config = host.configs / "triton_3_6_0" / NAME
    config.parent.mkdir(parents=True)
    config.write_text(USERS)
    first = host.tune().stages[MOE]
    assert "17" not in json.loads(config.read_text())
    copy = kept_copies(host.layout, config)[0]
    assert copy.read_text() == USERS
    assert first.warnings == (f"a config that no completion lists was in its place: it is kept as {copy}",)

    config.write_text(USERS.replace("17", "18"))  # in the place of a tuned one, which its completion lists
    again = host.tune().stages[MOE]
    assert again.status == "ok"
    kept = kept_copies(host.layout, config)
    assert sorted(next(iter(json.loads(each.read_text()))) for each in kept) == ["17", "18"]
    assert len(again.warnings) == 2

    host.tune(ops={**OTHERS, MOE: StageOp.REBUILD})
    assert len(kept_copies(host.layout, config)) == 2, "what rayprep made is not kept"
    copy.unlink()
    assert len(host.tune().stages[MOE].warnings) == 1, "it is said for as long as the copy is there"


def test_a_run_with_nothing_to_do_mends_and_goes_through_no_link(host: StoreHost) -> None:
    host.tune()
    old = host.configs / "triton_3_5_1" / "old.json"
    old.write_text("")
    assert statuses(host.tune())["moe_tune"] == "noop"
    assert old.read_text() == "{}\n"

    outside = [host.base / "outside", host.base / "active"]
    for folder, link in zip(outside, (old.parent, host.configs / "active"), strict=True):
        folder.mkdir()
        shutil.rmtree(link)
        link.symlink_to(folder)
    result = host.tune()
    assert statuses(result)["moe_tune"] == "noop"
    assert [list(folder.iterdir()) for folder in outside] == [[], []]
    assert "does not lie in" in result.stages[MOE].warnings[0]
    artifacts = result.stages[MOE].artifacts
    assert artifacts and artifacts.active_config_link is None


def test_a_newer_sglangs_configs_are_there_for_its_servers_without_tuning(
    host: StoreHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.tune()
    host.library = tmp_path / "newer" / STAND_IN.name
    shutil.copytree(STAND_IN, host.library)
    (tmp_path / "newer" / LIBRARY.name).symlink_to(LIBRARY)  # which it has the rest from
    new = next(host.library.rglob("configs")) / "triton_3_7_0" / "E=64,N=1.json"
    new.parent.mkdir()
    new.write_text("{}\n")
    monkeypatch.setattr(sys, "path", [str(host.library), *(path for path in sys.path if path != str(STAND_IN))])
    skipped = {**OTHERS, MOE: StageOp.SKIP}

    (host.configs / "triton_3_7_0").touch()  # in the way
    result = host.tune("--random-seed=1", ops=skipped)
    assert "triton_3_7_0" in result.warnings[0]
    (host.configs / "triton_3_7_0").unlink()

    result = host.tune("--random-seed=1", ops={**skipped, SERVE: StageOp.REBUILD})
    assert statuses(result)["moe_tune"] == "skipped"
    assert (host.configs / "triton_3_7_0" / new.name).read_text() == "{}\n"


def test_nothing_is_seeded_where_no_server_is_sent(host: StoreHost) -> None:
    host.tune(ops={**OTHERS, MOE: StageOp.SKIP})
    assert not host.cache.exists()
