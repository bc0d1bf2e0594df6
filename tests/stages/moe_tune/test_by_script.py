"""SGLang's own tuner in place of ours: a script that writes a config file into the folder that it is started in.

The file is tried by the tuner's own processes, with stand-ins for SGLang and Triton.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.layout import Layout
from rayprep.host.model_files import ModelFiles
from rayprep.model.plan import Work
from rayprep.model.process_end import Cleanup
from rayprep.sglang.architecture import parse_architecture
from rayprep.stages.moe_tune.stage import MoeTuneStage
from rayprep.stages.protocol import Built
from tests.model.samples import DIGEST
from tests.needs import needs_torch
from tests.node.serving import LIBRARY
from tests.node.test_moe_tune import CONFIG, NAME, STAND_IN
from tests.stages.contexts import build_context
from tests.stages.moe_tune.test_stage import request

pytestmark = needs_torch()

STAGE = MoeTuneStage()
SHAPE = "E=16 N=128 K=256 topk=4 fp8_w8a8 128x128"
ENTRY = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2}
HUGE = {**ENTRY, "BLOCK_SIZE_M": 256, "BLOCK_SIZE_N": 256}
"""It runs on no GPU that the stand-in plays."""
TELLS = "import json, sys; print('tuning', *sys.argv[1:]); "


def writes(entries: dict[str, dict[str, int]], name: str = NAME) -> str:
    return f"json.dump({entries}, open({name!r}, 'w'))"


def run(base: Path, script: str, library: Path = STAND_IN) -> tuple[Built, str]:
    """What the stage makes of a script, and its log."""
    path, scratch, ends = base / "tuner.py", base / "scratch", list[Cleanup]()
    path.write_text(TELLS + script)
    layout = Layout(base / "profiles", base / "telemetry")
    for folder in (scratch, layout.profiles / "moe_configs"):
        folder.mkdir(parents=True)
    env = {"PYTHONPATH": os.pathsep.join(map(str, (library, LIBRARY)))}
    context = build_context(layout, base / "stage.log", scratch, env, ends.append, deadline_s=200)
    asked = request(moe_tuner_script=str(path), moe_batch_sizes=(8,))
    asked = replace(asked, model=small_model(base))
    work = STAGE.plan(asked)
    assert isinstance(work, Work)
    built = STAGE.build(asked, work, context)
    assert len(ends) == 2
    assert all(end.killed for end in ends)
    return built, context.log.read_text()


def small_model(base: Path) -> ModelFiles:
    source = base / "small-moe.json"
    source.write_text(json.dumps(CONFIG))
    architecture = parse_architecture(source.read_text(), "small-moe")
    return ModelFiles(slug="small-moe", source=source, digest=DIGEST, architecture=architecture)


def test_its_file_is_taken_as_it_is(tmp_path: Path) -> None:
    built, log = run(tmp_path, writes({"8": ENTRY}))
    assert built.used == {f"moe_configs/configs/triton_3_6_0/{NAME}"}
    assert (built.units, built.whole) == ((f"script {SHAPE} M=8",), True)
    written = json.loads((tmp_path / "profiles" / next(iter(built.used))).read_text())
    assert written == {"8": ENTRY}
    assert built.artifacts and built.artifacts.tuning
    tuning = built.artifacts.tuning
    assert (tuning.strategy, tuning.sizes[0].speedup) == ("script", None)
    assert (tuning.tuner_version, tuning.seed) == (None, None), "which are those of our own"
    assert tuning.gpus == 1, "its file was tried on it"
    assert tuning.grid == f"that of {tmp_path / 'tuner.py'}"
    assert "--tune --model" in log
    assert "--tp-size 1 --dtype fp8_w8a8 --batch-size 8" in log


def test_its_kernels_are_not_put_among_the_servers(tmp_path: Path) -> None:
    compiles = "import os; open(os.environ['TRITON_CACHE_DIR'] + '/loser.cubin', 'w'); "
    run(tmp_path, compiles + writes({"8": ENTRY}))
    losers = [path.relative_to(tmp_path) for path in tmp_path.rglob("loser.cubin")]
    assert [path.parts[0] for path in losers] == ["scratch"], "which is removed with the stage's end"


def test_a_users_config_in_whose_place_it_comes_is_named(tmp_path: Path) -> None:
    config = tmp_path / "profiles" / "moe_configs" / "configs" / "triton_3_6_0" / NAME
    script = f"import pathlib; at = pathlib.Path({str(config)!r}); at.parent.mkdir(parents=True); "
    users = "at.write_text('{}'); "
    built, _ = run(tmp_path, script + users + writes({"8": ENTRY}))
    (warning,) = built.warnings
    assert "a config that no completion lists was in its place: it is kept as" in warning


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit(3)", r"ended with status 3 and left 0 config files"),
        ("pass", r"ended with status 0 and left 0 config files"),
        (f"open({NAME!r}, 'w').write('half')", "is no config file"),
        (f"open({NAME!r}, 'w').write('{{\"8\": {{}}}}')", "is no config file: 4 validation errors"),
        (f"open({NAME!r}, 'w').write('{{}}')", "has no entry"),
        (f"open({NAME!r}, 'w').write('[' * 100_000)", "is no config file"),
        (writes({"8": ENTRY}, "E=64,N=768.json"), "is for other experts than E=16 N=128 K=256"),
    ],
)
def test_a_script_that_fails_fails_the_stage(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(StageError, match=said) as caught:
        run(tmp_path, script)
    assert caught.value.error_type is ErrorType.TUNER_EXECUTION_ERROR
    assert "\n" not in caught.value.message


def test_a_script_named_from_here_is_found_and_what_it_left_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built, _ = run(Path(), writes({"16": ENTRY}))
    assert built.warnings == ("the script tuned nothing for 8 tokens, which take the nearest size's config",)


def test_an_entry_that_no_server_could_launch_is_left_out_and_named(tmp_path: Path) -> None:
    built, _ = run(tmp_path, writes({"8": ENTRY, "64": HUGE}))
    written = json.loads((tmp_path / "profiles" / next(iter(built.used))).read_text())
    assert written["8"] == ENTRY
    assert (written["64"]["BLOCK_SIZE_M"], written["64"]["GROUP_SIZE_M"]) == (64, 32), "SGLang's own"
    assert built.artifacts and built.artifacts.tuning and built.artifacts.refused
    (refused,) = built.artifacts.refused
    assert (refused.batch_size, refused.config, refused.own_runs) == (64, HUGE, True)
    assert "out of resource: shared memory" in refused.error
    assert [(size.batch_size, size.config) for size in built.artifacts.tuning.sizes] == [(8, ENTRY), (64, None)]
    warning = next(warning for warning in built.warnings if "64 tokens" in warning)
    assert warning.startswith("the entry for 64 tokens cannot be launched, and SGLang's own values are in its place: ")


def test_where_none_of_its_entries_can_be_launched_no_file_is_left(tmp_path: Path) -> None:
    built, _ = run(tmp_path, writes({"8": HUGE}))
    assert (built.used, built.may_be_empty) == (frozenset(), True)
    assert not list((tmp_path / "profiles").rglob(f"triton_*/{NAME}"))
    assert "no entry is left, and SGLang's own configs stay in use" in built.warnings


def test_a_twin_that_ships_with_sglang_does_not_overrule_what_the_script_measured(tmp_path: Path) -> None:
    """Its entry for the second product fits with SGLang's own rows, and not with the script's."""
    library = tmp_path / "other" / STAND_IN.name
    shutil.copytree(STAND_IN, library)
    (library.parent / LIBRARY.name).symlink_to(LIBRARY)
    wide = {**ENTRY, "BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 256}
    twin = NAME.replace(".json", "_down.json")
    (next(library.rglob("configs")) / "triton_3_6_0" / twin).write_text(json.dumps({"8": wide}))
    high = {**ENTRY, "BLOCK_SIZE_M": 128}
    built, _ = run(tmp_path, writes({"8": high}), library)
    assert sorted(Path(path).name for path in built.used) == sorted((NAME, twin))
    for path in built.used:
        assert json.loads((tmp_path / "profiles" / path).read_text()) == {"8": high}
