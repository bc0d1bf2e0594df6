"""The child that asks SGLang, on a stand-in of SGLang's loader: what it answers, and that it never answers wrongly."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from rayprep.sglang.inventory import ENVIRONMENT, Answer, Inventory, Refusal, Unasked, parse_answer
from tests.needs import needs_torch

pytestmark = needs_torch()

LIBRARY = Path(__file__).parents[1] / "fakes/asked_lib"
ROOT = Path(__file__).parents[2]
CONFIG = {
    **{"architectures": ["PlayedForCausalLM"], "hidden_size": 256, "moe_intermediate_size": 64},
    **{"num_experts": 8, "num_experts_per_tok": 2},
}


def asked(folder: Path, *flags: str, environ: Mapping[str, str] = MappingProxyType({}), **changes: object) -> Answer:
    """What the child says, which is one line."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "rayprep.sglang.inside.inventory", "--model-path", str(folder), *flags]
    path = os.pathsep.join([str(LIBRARY), str(ROOT)])
    env = {**os.environ, **ENVIRONMENT, **environ, "PYTHONPATH": path}
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=120)
    (line,) = done.stdout.splitlines()
    answer = parse_answer(line)
    assert answer is not None, done.stdout + done.stderr
    return answer


def test_all_that_a_rank_computes(tmp_path: Path) -> None:
    found = asked(tmp_path, "--tp-size", "2")
    assert isinstance(found, Inventory)
    assert (found.architecture, found.tp, found.dtype, found.gpu) == ("PlayedForCausalLM", 2, "bfloat16", "NVIDIA H200")
    (linear,), (experts,), (attention,) = found.linears, found.experts, found.attention
    assert (linear.count, linear.name, linear.n, linear.k, linear.dtype) == (2, "qkv_proj", 768, 256, "float8_e4m3fn")
    assert (linear.block_quant, linear.kernel) == (True, "deepgemm_w8a8_block_fp8_linear_with_fallback")
    assert (experts.count, experts.experts, experts.shared, experts.top_k, experts.runner) == (2, 9, 1, 3, "triton")
    assert experts.weights == {"w13_weight": (9, 128, 256), "w2_weight": (9, 256, 64)}
    assert experts.config_file == "E=9,N=64,device_name=NVIDIA_H200.json"
    assert (attention.count, attention.heads, attention.kv_heads, attention.window) == (2, 4, 2, None)
    assert found.setting("attention_backend") == "fa3"
    assert (found.deep_gemm_rows, found.largest_rows) == (((1, 1024, 1), (1026, 2048, 2)), 2048)
    assert (found.latent, found.draft) == (None, None)


@pytest.mark.parametrize(
    ("flags", "play", "said"),
    [
        ((), "refuses", "a block of 128 does not divide 192"),
        (("--no-such-flag",), "", "unrecognized arguments: --no-such-flag"),
    ],
)
def test_what_sglang_refuses_is_an_answer(tmp_path: Path, flags: tuple[str, ...], play: str, said: str) -> None:
    assert asked(tmp_path, *flags, play=play) == Refusal(refused=said)


@pytest.mark.parametrize(
    ("play", "said"),
    [
        ("forgets", "Unknown: a group of tp has 1 ranks in place of 2"),
        ("falls-back", "Unknown: SGLang has AnotherForCausalLM for PlayedForCausalLM"),
        ("loads", "Unknown: lm_head is not on the meta device"),
        ("bare", "Unknown: layers.0.qkv_proj, a LinearBase, has no weight that is known here"),
        ("crashes", "RuntimeError: no kernel image"),
    ],
)
def test_what_is_not_certain_is_no_answer(tmp_path: Path, play: str, said: str) -> None:
    found = asked(tmp_path, "--tp-size", "2", play=play)
    assert isinstance(found, Unasked)
    assert found.unknown.startswith(said)


def test_a_release_that_wants_to_be_told_more_is_not_asked(tmp_path: Path) -> None:
    found = asked(tmp_path, environ={"PLAY_NEWER": "1"})
    assert found == Unasked(unknown="Unknown: initialize_fp4_gemm_config of this release wants 'planner'")
