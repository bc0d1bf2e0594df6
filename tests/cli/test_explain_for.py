"""`rayprep explain --for`: what would be built on a GPU that need not be here."""

import json
from pathlib import Path

import jsonschema
import pytest

from rayprep.cli.schema import schema
from tests.conftest import Roots

MODELS = Path(__file__).parents[1] / "gpu" / "models"
GLM = str(MODELS / "glm4-moe-bf16-3l")


def forecast(roots: Roots, *args: str) -> dict[str, object]:
    done = roots.run("explain", "--json", *args)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    jsonschema.validate(found, schema("forecast"), jsonschema.Draft202012Validator)
    return found


def test_units_by_stage_and_the_experts(roots: Roots) -> None:
    found = forecast(roots, "--model", GLM, "--tp", "8", "--for", "NVIDIA H200")
    assert found["experts"] == "E=129 N=176 K=4096 topk=9 bfloat16"
    assert (found["listed_by"], found["device_name"], found["compute_capability"]) == ("tables", "NVIDIA H200", "sm_90")
    stages = found["stages"]
    assert isinstance(stages, dict)
    assert stages["deep_gemm"]["reason"] == "no_fp8_blocks"
    assert stages["flashinfer"]["units"] == ["trtllm_comm", "sampling", "norm"]
    assert stages["moe_tune"]["units"][0] == "auto E=129 N=176 K=4096 topk=9 bfloat16 M=1"
    assert {name: stage["listed_by"] for name, stage in stages.items() if stage["units"]} == {
        "moe_tune": "tables",
        "flashinfer": "tables",
        "serve": None,
    }
    assert not roots.profiles.exists() or not list(roots.profiles.iterdir()), "nothing is written"


def test_in_words(roots: Roots) -> None:
    done = roots.run("explain", "--model", GLM, "--for", "sm_90")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("glm4-moe-bf16-3l at TP 1 on NVIDIA H200 (sm_90), SGLang ")
    assert "listed by rayprep's tables" in lines
    assert "experts: E=129 N=1408 K=4096 topk=9 bfloat16" in lines
    assert "deep_gemm: nothing, no_fp8_blocks (SGLang runs nothing of this model through DeepGEMM)" in lines


@pytest.mark.parametrize("gpu", ["h100", "b200", "a100"])
def test_no_model_is_refused(roots: Roots, tmp_path: Path, gpu: str) -> None:
    """A family that no table has, and hardly a width."""
    (tmp_path / "config.json").write_text(
        '{"architectures": ["NewForCausalLM"], "model_type": "new"}', encoding="utf-8"
    )
    stages = forecast(roots, "--model", str(tmp_path), "--for", gpu)["stages"]
    assert isinstance(stages, dict)
    assert stages["serve"]["units"]
    assert stages["moe_tune"]["units"] == []


@pytest.mark.parametrize("gpu", ["Z80", ""])
def test_a_gpu_that_is_none_is_one_line(roots: Roots, gpu: str) -> None:
    done = roots.run("explain", "--model", GLM, "--for", gpu)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"--for {gpu!r} is no GPU" in done.stderr
