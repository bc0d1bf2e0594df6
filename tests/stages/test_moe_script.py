"""SGLang's own tuner in place of ours: a script that writes a config file into the folder that it is started in."""

import json
from pathlib import Path

import pytest

from rayprep.host.layout import Layout
from rayprep.model.cleanup import Cleanup
from rayprep.model.errors import ErrorType, StageError
from rayprep.model.plan import Work
from rayprep.stages.moe_tune import MoeTuneStage
from rayprep.stages.protocol import Built
from tests.stages.contexts import build_context
from tests.stages.test_moe_tune import SHAPE, request

NAME = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"
ENTRY = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2}
TELLS = "import json, sys; print('tuning', *sys.argv[1:]); "


def run(base: Path, script: str) -> tuple[Built, str]:
    """What the stage makes of a script, and its log."""
    path, scratch, ends = base / "tuner.py", base / "scratch", list[Cleanup]()
    path.write_text(TELLS + script)
    layout = Layout(base / "profiles", base / "telemetry")
    for folder in (scratch, layout.profiles / "moe_configs"):
        folder.mkdir(parents=True)
    context = build_context(layout, base / "stage.log", scratch, {}, ends.append, deadline_s=30)
    asked = request(moe_tuner_script=str(path), moe_batch_sizes=(8,))
    work = STAGE.plan(asked)
    assert isinstance(work, Work)
    built = STAGE.build(asked, work, context)
    assert ends[0].killed
    return built, context.log.read_text()


STAGE = MoeTuneStage()


def test_its_file_is_taken_as_it_is(tmp_path: Path) -> None:
    built, log = run(tmp_path, f"json.dump({{'8': {ENTRY}}}, open({NAME!r}, 'w'))")
    assert built.used == {f"moe_configs/configs/triton_3_6_0/{NAME}"}
    assert (built.units, built.whole) == ((f"script {SHAPE} M=8",), True)
    written = json.loads((tmp_path / "profiles" / next(iter(built.used))).read_text())
    assert written == {"8": ENTRY}
    assert built.artifacts and built.artifacts.tuning
    tuning = built.artifacts.tuning
    assert (tuning.strategy, tuning.sizes[0].speedup) == ("script", None)
    assert (tuning.tuner_version, tuning.seed) == (None, None), "which are those of our own"
    assert tuning.grid == f"that of {tmp_path / 'tuner.py'}"
    assert "--tune --model" in log
    assert "--tp-size 1 --dtype fp8_w8a8 --batch-size 8" in log


def test_its_kernels_are_not_put_among_the_servers(tmp_path: Path) -> None:
    compiles = "import os; open(os.environ['TRITON_CACHE_DIR'] + '/loser.cubin', 'w'); "
    run(tmp_path, f"{compiles}json.dump({{'8': {ENTRY}}}, open({NAME!r}, 'w'))")
    losers = [path.relative_to(tmp_path) for path in tmp_path.rglob("loser.cubin")]
    assert [path.parts[0] for path in losers] == ["scratch"], "which is removed with the stage's end"


def test_a_users_config_in_whose_place_it_comes_is_named(tmp_path: Path) -> None:
    config = tmp_path / "profiles" / "moe_configs" / "configs" / "triton_3_6_0" / NAME
    script = f"import pathlib; at = pathlib.Path({str(config)!r}); at.parent.mkdir(parents=True); "
    users = "at.write_text('{}'); "
    built, _ = run(tmp_path, f"{script}{users}json.dump({{'8': {ENTRY}}}, open({NAME!r}, 'w'))")
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
        (f"json.dump({{'8': {ENTRY}}}, open('E=64,N=768.json', 'w'))", "is for other experts than E=128 N=768 K=2048"),
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
    built, _ = run(Path(), f"json.dump({{'16': {ENTRY}}}, open({NAME!r}, 'w'))")
    assert built.warnings == ("the script tuned nothing for 8 tokens, which take the nearest size's config",)
