"""Which products SGLang runs through DeepGEMM: held against real servers' logs, and against its rules."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.sglang.architecture import Architecture, parse_architecture
from rayprep.sglang.gemm_shapes import (
    EXPERTS,
    KINDS,
    LINEAR,
    GemmShape,
    chunked_prefill_size,
    fitting,
    gemm_shapes,
    largest_rows,
    m_values,
    missed_shapes,
    operand_bytes,
    uses_nvrtc,
)

TESTS = Path(__file__).parents[1]
MODELS = TESTS / "gpu/models"
LOGS = sorted((TESTS / "data/gemm").glob("*.log"))
SAID = re.compile(r"Try DeepGEMM JIT Compiling for <(\w+)> N=(\d+), K=(\d+), num_groups=(\d+)")
DEEP_GEMM_EXPERTS = ("--moe-runner-backend", "deep_gemm")


def architecture(name: str, **changes: object) -> Architecture:
    keys = json.loads((MODELS / name / "config.json").read_text(encoding="utf-8"))
    return parse_architecture(json.dumps({**keys, **changes}), name)


def quantised(**changes: object) -> dict[str, object]:
    return {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], **changes}}


def linears(shapes: tuple[GemmShape, ...] | None) -> set[tuple[int, int]]:
    assert shapes is not None
    return {(shape.n, shape.k) for shape in shapes if shape.kind == LINEAR}


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.stem)
def test_the_shapes_are_those_that_a_real_server_named(log: Path) -> None:
    named = {
        GemmShape(kind=kind, n=int(n), k=int(k), groups=int(groups))
        for kind, n, k, groups in SAID.findall(log.read_text(encoding="utf-8"))
    }
    assert named
    assert set(gemm_shapes(architecture(log.stem), 1, ()) or ()) == named


def test_deepseek_v3_at_tp_8() -> None:
    """The whole model: with 256 experts the shared expert runs as one more of them."""
    shapes = gemm_shapes(architecture("deepseek-v3-fp8-4l", n_routed_experts=256), 8, ())
    assert linears(shapes) == {(2112, 7168), (3072, 1536), (4096, 512), (7168, 2048), (4608, 7168), (7168, 2304)}


def test_a_shared_expert_is_a_layer_of_its_own_unless_it_is_fused() -> None:
    v3 = architecture("deepseek-v3-fp8-4l", n_routed_experts=256)
    apart, down = (512, 7168), (7168, 256)
    assert {apart, down} <= linears(gemm_shapes(v3, 8, ("--disable-shared-experts-fusion",)))
    few_experts = architecture("deepseek-v3-fp8-4l")
    assert {apart, down} <= linears(gemm_shapes(few_experts, 8, ()))
    assert not {apart, down} & linears(gemm_shapes(few_experts, 8, ("--enforce-shared-experts-fusion",)))


def test_a_qwen2_moe_model_has_its_shared_expert_and_no_dense_layer() -> None:
    keys = {"architectures": ["Qwen2MoeForCausalLM"], "shared_expert_intermediate_size": 2560, "mlp_only_layers": [0]}
    shapes = gemm_shapes(architecture("qwen3-moe-fp8-4l", **keys), 2, ())
    assert linears(shapes) == {(2560, 2048), (2048, 2048), (2560, 2048), (2048, 1280)}


def test_a_rank_has_at_least_one_key_value_head() -> None:
    llama = architecture("llama-fp8-2l")
    assert (4096 // 16 + 2 * 128, 4096) in linears(gemm_shapes(llama, 16, ()))


def test_widths_that_deep_gemm_cannot_take_are_left_to_triton() -> None:
    # K = 14336 / 16 = 896 is a multiple of 128; N = 28672 / 16 of 64. At TP 32, K = 448 is not.
    llama = architecture("llama-fp8-2l")
    assert {(1792, 4096), (4096, 896)} <= linears(gemm_shapes(llama, 16, ()))
    assert (4096, 448) not in linears(gemm_shapes(llama, 32, ()))


@pytest.mark.parametrize("name", ["MistralForCausalLM", "Qwen3ForCausalLM"])
def test_architectures_of_the_same_layers(name: str) -> None:
    assert gemm_shapes(architecture("llama-fp8-2l", architectures=[name]), 1, ()) == gemm_shapes(
        architecture("llama-fp8-2l"), 1, ()
    )


def test_experts_only_where_they_are_asked_to_run_through_deep_gemm() -> None:
    model = architecture("qwen3-moe-fp8-4l")
    shapes = gemm_shapes(model, 2, DEEP_GEMM_EXPERTS) or ()
    experts = {(shape.n, shape.k, shape.groups) for shape in shapes if shape.kind == EXPERTS}
    assert experts == {(768, 2048, 128), (2048, 384, 128)}
    assert linears(shapes) == linears(gemm_shapes(model, 2, ()))
    fused = gemm_shapes(architecture("deepseek-v3-fp8-4l", n_routed_experts=256), 8, DEEP_GEMM_EXPERTS) or ()
    assert {shape.groups for shape in fused if shape.kind == EXPERTS} == {257}


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": None},
        quantised(weight_block_size=None),
        quantised(quant_method="awq"),
        {"torch_dtype": "float16"},
    ],
    ids=["bf16", "per tensor", "awq", "fp16"],
)
def test_nothing_is_needed_without_fp8_blocks(changes: dict[str, object]) -> None:
    assert gemm_shapes(architecture("llama-fp8-2l", **changes), 1, ()) == ()


@pytest.mark.parametrize(
    "server_args",
    [("--fp8-gemm-backend", "triton"), ("--fp8-gemm-backend=flashinfer_deepgemm",), ("--dtype", "float16")],
    ids=" ".join,
)
def test_nothing_is_needed_where_the_flags_lead_elsewhere(server_args: tuple[str, ...]) -> None:
    assert gemm_shapes(architecture("llama-fp8-2l"), 1, server_args) == ()


def test_the_backend_may_be_named() -> None:
    model = architecture("llama-fp8-2l")
    assert gemm_shapes(model, 1, ("--fp8-gemm-backend", "deep_gemm")) == gemm_shapes(model, 1, ())


def test_what_is_not_known_is_said() -> None:
    assert gemm_shapes(architecture("llama-fp8-2l", architectures=["GrokForCausalLM"]), 1, ()) is None
    assert gemm_shapes(architecture("llama-fp8-2l", **quantised(weight_block_size=[64, 128])), 1, ()) is None
    bf16_experts = architecture("qwen3-moe-fp8-4l", quantization_config=None)
    assert gemm_shapes(bf16_experts, 1, DEEP_GEMM_EXPERTS) is None


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
def test_layers_that_the_config_leaves_unquantised(key: str) -> None:
    everywhere = {key: ["mlp.down_proj", "lm_head", "mlp.gate"]}
    assert linears(gemm_shapes(architecture("llama-fp8-2l", **quantised(**everywhere)), 1, ())) == {
        *((6144, 4096), (4096, 4096), (28672, 4096))
    }
    one_layer = {key: [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]}
    assert (6144, 4096) in linears(gemm_shapes(architecture("llama-fp8-2l", **quantised(**one_layer)), 1, ()))
    both = {key: [f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 1) for part in "qkv"]}
    assert (6144, 4096) not in linears(gemm_shapes(architecture("llama-fp8-2l", **quantised(**both)), 1, ()))


def test_null_lists_are_left_out_ones() -> None:
    keys = quantised(modules_to_not_convert=None, ignored_layers=None)
    assert gemm_shapes(architecture("llama-fp8-2l", **keys), 1, ()) == gemm_shapes(architecture("llama-fp8-2l"), 1, ())


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.integers(1, 512))
def test_a_shape_reads_back_what_it_wrote(kind: str, n: int, k: int, groups: int) -> None:
    shape = GemmShape(kind=kind, n=n, k=k, groups=groups)
    assert GemmShape.parse(str(shape)) == shape


@pytest.mark.parametrize("text", ["", "server", "X N=1 K=1", "X N=0 K=1 groups=1", "X N=1 K=1 groups=1, nvrtc"])
def test_other_text_is_no_shape(text: str) -> None:
    with pytest.raises(ValueError, match=r"shape|greater than 0"):
        GemmShape.parse(text)


@pytest.mark.parametrize(
    ("chunk", "largest"),
    [(None, 16384), (8192, 16384), (2048, 16384), (8193, 16386), (16384, 32768), (-1, 65536), (1 << 20, 131072)],
)
def test_rows_reach_as_far_as_sglangs_own_loop(chunk: int | None, largest: int) -> None:
    assert largest_rows(chunk) == largest
    assert m_values(largest)[:3] == (1, 16, 32)


@given(st.integers(1, 40_000))
def test_every_tile_count_that_the_loop_reaches_is_reached(largest: int) -> None:
    assert {-(-m // 16) for m in m_values(largest)} == {-(-m // 16) for m in range(1, largest + 1)}


def test_the_chunk_is_read_from_the_servers_flags() -> None:
    assert chunked_prefill_size(("--chunked-prefill-size", "4096", "--chunked-prefill-size=-1")) == -1
    assert chunked_prefill_size(("--tp", "1")) is None


def test_rows_that_do_not_fit_are_halved_as_sglang_does() -> None:
    shape = GemmShape(kind=LINEAR, n=1024, k=1024)
    rows, plenty = m_values(16384), 1 << 40
    assert fitting(shape, rows, 128, plenty) == rows
    assert fitting(shape, rows, 128, operand_bytes(shape, 8192))[-1] == 8192
    assert fitting(shape, rows, 128, 0)[-1] == 4096
    assert [fitting(shape, rows, 128, 0, f"0.5.{release}")[-1] for release in (17, 18, 23)] == [4096, 2048, 2048]
    bare = operand_bytes(shape, 8192)
    assert [fitting(shape, rows, 128, bare, f"0.5.{release}")[-1] for release in (21, 22)] == [8192, 4096]
    contiguous = GemmShape(kind="GROUPED_GEMM_NT_F8F8BF16_CONTIG", n=1024, k=1024, groups=4)
    assert fitting(contiguous, rows, 128, plenty) == tuple(range(128, 16385, 128))
    assert fitting(contiguous, (1,), 128, plenty) == ()


def test_memory_of_a_product() -> None:
    """Against the formulas in sglang's compile_utils.py, the row indices and masks left out."""
    n, k, m, groups = 512, 256, 1000, 8
    expected = {
        LINEAR: m * k + n * k + m * n * 2,
        "GROUPED_GEMM_NT_F8F8BF16_CONTIG": m * k + groups * n * k + m * n * 2,
        EXPERTS: groups * m * k + groups * n * k + groups * m * n * 2,
        "GEMM_NT_BF16BF16F32": m * k * 2 + n * k * 2 + m * n * 4,
        "GROUPED_GEMM_NT_BF16_CONTIG": m * k * 2 + groups * n * k * 2 + m * n * 2,
        "GROUPED_GEMM_NT_BF16_MASKED": groups * m * k * 2 + groups * n * k * 2 + groups * m * n * 2,
    }
    assert expected.keys() == KINDS
    for kind, size in expected.items():
        shape = GemmShape(kind=kind, n=n, k=k, groups=groups if kind.startswith("GROUPED") else 1)
        assert operand_bytes(shape, m) == size, kind


@pytest.mark.parametrize(
    ("kind", "scales"),
    [
        (LINEAR, 2 * 4 * (1001 + 1004) + 4 * 2 * 4),
        ("GROUPED_GEMM_NT_F8F8BF16_CONTIG", 2 * 4 * (1001 + 1004) + 8 * 4 * 2 * 4),
        (EXPERTS, 8 * (2 * 4 * (1001 + 1004) + 4 * 2 * 4)),
        ("GEMM_NT_BF16BF16F32", 0),
        ("GROUPED_GEMM_NT_BF16_MASKED", 0),
    ],
)
def test_newer_releases_count_the_scales(kind: str, scales: int) -> None:
    shape = GemmShape(kind=kind, n=512, k=256, groups=8 if kind.startswith("GROUPED") else 1)
    assert operand_bytes(shape, 1001, "0.5.21") == operand_bytes(shape, 1001)
    assert operand_bytes(shape, 1001, "0.5.22") == operand_bytes(shape, 1001) + scales


@pytest.mark.parametrize(
    ("environ", "version", "used"),
    [
        ({}, "0.1.4", False),
        ({"SGL_DG_USE_NVRTC": "1"}, "0.1.4", True),
        ({"SGLANG_DG_USE_NVRTC": "True"}, "0.1.7", True),
        ({"SGLANG_DG_USE_NVRTC": "1", "SGL_DG_USE_NVRTC": "0"}, "0.1.7", False),
        ({"SGL_DG_USE_NVRTC": "false"}, "0.1.4", False),
        ({"SGL_DG_USE_NVRTC": "1"}, None, True),
        ({"SGL_DG_USE_NVRTC": "1", "SGLANG_DG_USE_NVRTC": "1"}, "0.2.0", False),
        ({"SGLANG_DG_USE_NVRTC": "1"}, "0.2.3.post2", False),
    ],
)
def test_nvrtc_is_used_where_deep_gemm_has_it_and_sglang_is_asked(
    environ: dict[str, str], version: str | None, *, used: bool
) -> None:
    assert uses_nvrtc(environ, version) is used


def test_missed_is_what_no_unit_was_for() -> None:
    first, second = GemmShape(kind=LINEAR, n=64, k=128), GemmShape(kind=LINEAR, n=64, k=256)
    assert missed_shapes([str(first)], [second, first, second]) == (second,)
    assert missed_shapes([f"{first}, nvrtc", str(second)], [second, first]) == ()
    assert missed_shapes(["server"], [first]) == ()


@pytest.mark.parametrize(
    "stored",
    [
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": 8, "strategy": "block"}}},
        },
        {"quant_method": "w4afp8"},
        {"quant_method": "something_new"},
    ],
)
def test_weights_that_may_be_fp8_in_blocks_are_left_to_the_server(stored: dict[str, object]) -> None:
    assert gemm_shapes(architecture("llama-fp8-2l", quantization_config=stored), 1, ()) is None


@pytest.mark.parametrize(
    "stored",
    [
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "group"}}},
        },
        *({"quant_method": method} for method in ("awq", "gptq", "mxfp4", "modelopt_fp4", "modelopt_fp8")),
    ],
)
def test_weights_that_are_not_run_nothing_through_deep_gemm(stored: dict[str, object]) -> None:
    assert gemm_shapes(architecture("llama-fp8-2l", quantization_config=stored), 1, ()) == ()


@pytest.mark.parametrize(("release", "layouts"), [(None, 1), ("0.5.16", 1), ("0.5.17", 2), ("0.5.23", 2), ("0.6", 2)])
def test_experts_may_lie_in_two_ways_from_a_release_on(release: str | None, layouts: int) -> None:
    shapes = gemm_shapes(architecture("qwen3-moe-fp8-4l"), 1, DEEP_GEMM_EXPERTS, release) or ()
    assert len([shape for shape in shapes if shape.groups > 1]) == 2 * layouts
