"""What the moe_tune stage plans, and what a finished search covers."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest, ErrorType, StageError
from rayprep.host.layout import Layout
from rayprep.host.means import read_means
from rayprep.host.model_files import ModelFiles
from rayprep.model.plan import NotNeeded, Unable, Work
from rayprep.model.spec import DeviceChoice, MoeStrategy, PrepSpec
from rayprep.sglang.architecture import parse_architecture
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.run import tune, tuning_home
from rayprep.stages.moe_tune.search import Choice
from rayprep.stages.moe_tune.stage import MoeTuneStage
from rayprep.stages.moe_tune.units import covered_units, shape_of
from rayprep.stages.protocol import StageRequest
from rayprep.stages.serve.stage import serve_follows
from tests.model.samples import DIGEST, signature
from tests.stages.contexts import build_context

MODELS = Path(__file__).parents[2] / "gpu" / "models"
STAGE = MoeTuneStage()
SHAPE = "E=128 N=768 K=2048 topk=8 fp8_w8a8 128x128"


def request(
    model: str = "qwen3-moe-fp8-4l", device: DeviceChoice = DeviceChoice.CUDA, host: object = None, **spec: object
) -> StageRequest:
    source, script = MODELS / model / "config.json", spec.get("moe_tuner_script")
    changes = host if isinstance(host, dict) else {}
    return StageRequest(
        spec=PrepSpec.model_validate({"model": model, **spec}),
        model=ModelFiles(
            slug=model, source=source, digest=DIGEST, architecture=parse_architecture(source.read_text(), model)
        ),
        device=device,
        signature=signature(**changes),
        means=read_means(os.environ, None if script is None else str(script)),
    )


def test_one_unit_is_one_number_of_tokens() -> None:
    plan = STAGE.plan(request(moe_batch_sizes=(64, 1), moe_strategy="fixed"))
    assert isinstance(plan, Work)
    assert plan.units == (f"fixed {SHAPE} M=1", f"fixed {SHAPE} M=64")
    assert (plan.batch_sizes, plan.by_sglang) == ((1, 64), True)
    assert plan.seconds > 0
    default = STAGE.plan(request())
    assert isinstance(default, Work)
    assert default.units[0] == f"auto {SHAPE} M=1"
    assert default.units[-1] == f"auto {SHAPE} M=8192"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(device=DeviceChoice.CPU), "no_gpu"),
        (request("llama-fp8-2l"), "dense_model"),
        (request(server_args=("--moe-runner-backend", "deep_gemm")), "no_triton_moe"),
        (request(host={"compute_capability": "sm_100"}), "unknown_moe_kernel"),
    ],
)
def test_where_there_is_nothing_to_tune(asked: StageRequest, reason: str) -> None:
    plan = STAGE.plan(asked)
    assert isinstance(plan, NotNeeded)
    assert plan.reason == reason


def test_what_cannot_be_tuned_here_still_names_its_units() -> None:
    plan = STAGE.plan(request(host={"triton_version": None}))
    assert isinstance(plan, Unable)
    assert (plan.error_type, len(plan.units)) == (ErrorType.TOOLCHAIN_MISMATCH, 14)
    assert "missing: triton" in plan.message


def test_a_runner_that_is_named_is_known_on_a_newer_gpu() -> None:
    explicit = ("--moe-runner-backend=triton",)
    assert isinstance(STAGE.plan(request(host={"compute_capability": "sm_100"}, server_args=explicit)), Work)


def test_a_scaling_block_that_no_tile_divides_is_not_tuned_to_nothing() -> None:
    asked = request()
    text = asked.model.source.read_text().replace("[128,128]", "[48,48]")
    plan = STAGE.plan(replace(asked, model=replace(asked.model, architecture=parse_architecture(text, "m"))))
    assert isinstance(plan, NotNeeded)
    assert plan.detail == f"no tile of SGLang's tuner divides the scaling block of {SHAPE[:-7]}48x48"


def test_what_earlier_runs_finished_is_covered_too() -> None:
    shape = shape_of(request())
    assert isinstance(shape, MoeShape)
    of = {1: (MoeStrategy.FIXED, MoeStrategy.AUTO), 8: (MoeStrategy.FIXED,), 16: ()}
    choices = [Choice(tokens=size, config=None, us=1, stock_us=1, strategies=each) for size, each in of.items()]
    found = covered_units(PrepSpec(model="m", moe_batch_sizes=(8,)), shape, choices)
    assert set(found) == {f"{each} {shape} M={size}" for size, strategies in of.items() for each in strategies}


def test_sglangs_own_tuner_is_asked_for_by_its_file(tmp_path: Path) -> None:
    script = tmp_path / "tuner.py"
    with pytest.raises(BadRequest, match=r"tuner\.py is no file"):
        STAGE.plan(request(moe_tuner_script=str(script)))
    script.touch()
    plan = STAGE.plan(request(moe_tuner_script=str(script), moe_batch_sizes=(8,)))
    assert isinstance(plan, Work)
    assert plan.units == (f"script {SHAPE} M=8",)


@pytest.mark.parametrize(
    ("spec", "follows"),
    [({}, True), ({"selected": ("moe_tune",)}, False), ({"ops": {"serve": "skip"}}, False)],
)
def test_who_asks_a_server(spec: dict[str, object], follows: bool) -> None:
    assert serve_follows(PrepSpec.model_validate(json.loads(json.dumps({"model": "m", **spec})))) is follows


def test_what_was_measured_is_kept_until_a_rebuild_is_asked_for(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path)
    asked, anew = request(), request(ops={"moe_tune": "rebuild"})
    shape = shape_of(asked)
    assert isinstance(shape, MoeShape)
    log = tuning_home(asked, shape, layout) / "measurements.jsonl"
    log.parent.mkdir(parents=True)
    log.touch()
    assert (tuning_home(asked, shape, layout), log.exists()) == (log.parent, True)
    assert (tuning_home(anew, shape, layout), log.exists()) == (log.parent, False)


@pytest.mark.parametrize(("place", "op"), [("", "rebuild"), ("{}", "rebuild"), ("{}/kernels", "ensure")])
def test_nothing_of_a_tuning_is_written_or_removed_through_a_link(tmp_path: Path, place: str, op: str) -> None:
    """In folders that the scan of the cache passes over."""
    layout, asked = Layout(tmp_path / "profiles", tmp_path), request(ops={"moe_tune": op})
    shape = shape_of(asked)
    assert isinstance(shape, MoeShape)
    home = tuning_home(asked, shape, layout)
    kept = tmp_path / "theirs" / home.name / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    link = home.parent / place.format(home.name)
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "theirs")
    context = build_context(layout, tmp_path / "log", tmp_path, {}, lambda _: None)
    with pytest.raises(StageError, match=f"{link.name}: it is a link, which is not followed"):
        tune(asked, shape, context)
    assert [path for path in kept.parents[1].rglob("*") if path.is_file()] == [kept]
