"""Every entry of a MoE config is launched before a server reads it: real processes, with stand-ins for SGLang.

The servers of these runs die of an entry that does not fit, as real ones do.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

import pytest

from rayprep.model.caches import CacheName
from rayprep.model.result import PrepResult, StageResult
from rayprep.sglang.moe_shape import default_batch_sizes
from rayprep.store.completions import write_completion
from rayprep.store.moe_folder import digest_of, kept_copies
from rayprep.store.package.archive_file import open_to_read, open_to_write
from rayprep.store.package.pack import pack
from rayprep.store.package.unpack import Receipt, receive
from tests.needs import needs_torch
from tests.node.serving import LIBRARY, Flags, played, statuses
from tests.node.test_moe_store import StoreHost
from tests.node.test_moe_tune import MOE, NAME, STAND_IN

pytestmark = [pytest.mark.tuner, needs_torch()]

Entries = dict[str, dict[str, int]]
TWIN = NAME.replace(".json", "_down.json")
FIT = {
    **{"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32},
    **{"num_warps": 4, "num_stages": 3},
}
UNFIT, DEADLY = {**FIT, "BLOCK_SIZE_N": 512}, {**FIT, "num_stages": 7}
USUAL: Entries = {str(size): FIT for size in default_batch_sizes(())}
"""With a size of its own, another entry concerns no other."""
NOBODY_TUNES = "200"


class LaunchHost(StoreHost):
    """With an SGLang whose own configs a test can write."""

    def ship(self, name: str, entries: Mapping[str, Mapping[str, int]]) -> bytes:
        text = json.dumps(entries).encode()
        (next(self.library.rglob("configs")) / "triton_3_6_0" / name).write_bytes(text)
        return text

    def tuned(self, *sizes: int, **flags: Unpack[Flags]) -> PrepResult:
        """A tuning for these sizes, and the servers after it."""
        return self.tune(**(Flags(moe_batch_sizes=sizes or (1,), verify=True) | flags))

    @property
    def config(self) -> Path:
        return self.configs / "triton_3_6_0" / NAME

    def entries(self, name: str = NAME) -> Entries:
        entries: Entries = json.loads(self.config.with_name(name).read_text())
        return entries


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LaunchHost]:
    library = tmp_path / "library" / STAND_IN.name
    shutil.copytree(STAND_IN, library, ignore=shutil.ignore_patterns("__pycache__"))
    (library.parent / LIBRARY.name).symlink_to(LIBRARY)  # which it has the rest from
    yield from played(LaunchHost(tmp_path, library=library), monkeypatch, LIBRARY, library)


def refused(stage: StageResult) -> list[tuple[int, dict[str, int | bool], bool]]:
    """The entries, each named by a warning."""
    entries = (stage.artifacts.refused if stage.artifacts else None) or ()
    named = [warning for warning in stage.warnings if "cannot be launched" in warning]
    for entry, warning in zip(entries, named, strict=True):
        assert f"{entry.batch_size} tokens" in warning
        assert entry.error in warning
    return [(entry.batch_size, entry.config, entry.own_runs) for entry in entries]


@pytest.mark.slow  # by default an entry that was put into the file fails
def test_candidates_that_fail_leave_sglangs_own_values_where_nothing_is_tuned(host: LaunchHost) -> None:
    """SGLang's `override_config` leaves its config in place where its block raises: one that is not SGLang's own."""
    stage = host.tuned(256).stages[MOE]
    assert stage.artifacts and stage.artifacts.tuning
    assert stage.artifacts.tuning.failed, "or nothing was left in place"
    written = host.entries()
    assert written.pop("256") == stage.artifacts.tuning.sizes[0].config
    assert set(written) == set(USUAL) - {"256"}
    assert all(entry == FIT for entry in written.values())
    assert refused(stage) == []


@pytest.mark.slow  # by default one that was put into our file is not
@pytest.mark.parametrize(
    ("name", "entry", "settings"),
    [
        pytest.param(NAME, UNFIT, {}, marks=pytest.mark.slow),
        pytest.param(TWIN, UNFIT, {}, marks=pytest.mark.slow),
        (NAME, DEADLY, {"FAKE_DEADLY_LAUNCH": "7"}),
        pytest.param(NAME, DEADLY, {"FAKE_DEADLY_STAGES": "7"}, marks=pytest.mark.slow),
        pytest.param(TWIN, DEADLY, {"FAKE_DEADLY_LAUNCH": "7"}, marks=pytest.mark.slow),
    ],
    ids=["unfit", "unfit-twin", "kills-the-launching-process", "kills-the-compiler", "twin-kills"],
)
def test_an_entry_that_ships_with_sglang_and_does_not_run_is_in_no_file_of_ours(
    host: LaunchHost, monkeypatch: pytest.MonkeyPatch, name: str, entry: dict[str, int], settings: dict[str, str]
) -> None:
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    names = {NAME, name}
    for file in names:
        host.ship(file, {**USUAL, NOBODY_TUNES: entry if file == name else FIT})
    result = host.tuned(1)
    skips = dict.fromkeys(("deep_gemm", "flashinfer", "inductor"), "skipped")
    assert statuses(result) == {**skips, "moe_tune": "ok", "serve": "ok"}
    assert result.verify and result.verify.status == "ok"
    assert refused(result.stages[MOE]) == [(int(NOBODY_TUNES), entry, False)]
    for file in names:
        written = host.entries(file)
        assert written.pop("1")["BLOCK_SIZE_M"] == 16, "as it was tuned"
        assert written == {size: FIT for size in USUAL if size != "1"}


@pytest.mark.slow  # by default an entry that was put into the file is found, above
@pytest.mark.parametrize("tokens", [7, 12])
def test_an_entry_is_refused_that_runs_for_some_of_the_tokens_that_take_it(
    host: LaunchHost, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """With the 8 that it was measured with it runs. From 7 to 12 tokens take it."""
    monkeypatch.setenv("FAKE_BREAKS", f"16@{tokens}")
    stage = host.tuned(1, 8).stages[MOE]
    assert stage.artifacts and stage.artifacts.refused and stage.artifacts.tuning
    (entry,) = stage.artifacts.refused
    assert (entry.batch_size, entry.config["BLOCK_SIZE_M"], entry.own_runs) == (8, 16, True)
    assert entry.error.endswith(f"(with {tokens} tokens)")
    written = host.entries()
    assert (written["1"]["BLOCK_SIZE_M"], written["8"]) == (16, FIT)
    assert [(size.batch_size, size.config) for size in stage.artifacts.tuning.sizes] == [(1, written["1"]), (8, None)]


@pytest.mark.slow  # by default where nothing gains, no server is asked
@pytest.mark.parametrize("ships", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_where_nothing_gains_two_percent_sglangs_own_stays_in_use(
    host: LaunchHost, monkeypatch: pytest.MonkeyPatch, ships: bool
) -> None:
    shipped = host.ship(NAME, USUAL) if ships else None
    host.tuned()
    assert host.entries()["1"] != FIT
    monkeypatch.setenv("FAKE_GAIN", "1.01")
    made_by(host, "4")
    shutil.rmtree(host.cache / "tuning")  # that one's measurements are not compared with ours
    shutil.rmtree(host.layout.cache(CacheName.TRITON))
    result = host.tuned()
    stage, completion = result.stages[MOE], host.completion(MOE)
    assert stage.warnings == ("no batch size gains 2%, and SGLang's own configs stay in use",)
    assert (host.config.read_bytes() if host.config.exists() else None) == shipped
    assert completion and completion.artifacts == {}
    assert stage.artifacts and stage.artifacts.tuning
    assert (stage.artifacts.config_file, stage.artifacts.active_config_link) == (None, None)
    assert stage.artifacts.tuning.sizes[0].config is None
    assert stage.artifacts.tuning.served == 4, "of its own config, which servers run: two products, each in two ways"
    assert len(list(host.layout.cache(CacheName.TRITON).glob("*.kernel"))) == 4
    assert kept_copies(host.layout, host.config) == [], "it was no user's"
    assert all(link.exists() for link in host.configs.glob("active/*")), "no link dangles"
    assert statuses(result)["serve"] == "ok", "other kernels than with the earlier one"
    assert result.verify and (result.verify.ran, result.verify.status) == (True, "ok")
    again = host.tuned()
    assert {statuses(again)[stage] for stage in ("moe_tune", "serve")} == {"noop"}
    assert (host.config.read_bytes() if host.config.exists() else None) == shipped


def test_where_nothing_gains_no_server_is_asked_for_its_word(host: LaunchHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GAIN", "1.01")
    stage = host.tuned(selected=(MOE,)).stages[MOE]
    assert (stage.status, stage.verified_in_log) == ("ok", None)
    assert statuses(host.tuned(selected=(MOE,)))["moe_tune"] == "noop"


def made_by(host: LaunchHost, version: str) -> None:
    """Has the completion say that another version of the tuner made the file that is there."""
    completion, content = host.completion(MOE), host.config.read_bytes()
    assert completion and completion.tuning
    (path,) = completion.artifacts
    tuning = completion.tuning.model_copy(update={"tuner_version": version})
    listed = {"tuning": tuning, "artifacts": {path: (len(content), digest_of(content))}}
    write_completion(host.layout, completion.model_copy(update=listed))


def plant(host: LaunchHost) -> bytes:
    """Adds an entry that no server can launch, for a size that nobody tuned."""
    text = json.dumps({**host.entries(), NOBODY_TUNES: UNFIT}).encode()
    host.config.write_bytes(text)
    return text


def test_an_entry_that_was_put_into_a_file_of_ours_is_found_before_a_server_starts(host: LaunchHost) -> None:
    host.tuned()
    before = host.config.read_bytes()
    planted = plant(host)
    assert statuses(host.tuned())["moe_tune"] == "ok"
    assert host.config.read_bytes() == before
    assert [copy.read_bytes() for copy in kept_copies(host.layout, host.config)] == [planted]


@pytest.mark.slow  # by default what was put into the file is found
def test_what_an_earlier_tuner_left_is_tried_before_a_server_starts(host: LaunchHost) -> None:
    """It launched what it had measured, and no other entry of the file."""
    host.tuned()
    before = host.config.read_bytes()
    plant(host)
    made_by(host, "4")
    assert statuses(host.tuned())["moe_tune"] == "ok"
    assert host.config.read_bytes() == before
    assert kept_copies(host.layout, host.config) == [], "it was no user's"
    assert statuses(host.tuned())["moe_tune"] == "noop"


@pytest.mark.slow  # it tunes on two hosts
def test_a_config_that_its_builder_gave_up_does_not_stay_with_who_received_it(
    host: LaunchHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Listed by nothing, it would be nobody's, and servers would die of it for ever."""
    host.tuned()
    plant(host)
    made_by(host, "4")
    host.keep()
    monkeypatch.setenv("FAKE_GAIN", "1.01")
    shutil.rmtree(host.cache / "tuning")
    host.tuned()
    built = host.completion(MOE)
    assert built
    assert built.artifacts == {}
    with open_to_write(str(tmp_path / "package")) as out:
        pack(host.layout, [built], out)
    host.restore()
    with open_to_read(str(tmp_path / "package"), None) as package:
        receive(host.layout, package, built.signature, Receipt("run", replace=frozenset({(MOE, built.key)})))
    assert not host.config.exists()
    result = host.tuned()
    assert (statuses(result)["moe_tune"], statuses(result)["serve"]) == ("noop", "ok")
