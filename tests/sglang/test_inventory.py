"""What SGLang's answers mean: recorded answers of two releases, and of a real H200, held against tables and logs."""

import json
import re
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest
from rayprep.base.records import read_tolerant
from rayprep.sglang.architecture import Architecture, parse_architecture
from rayprep.sglang.flashinfer_modules import flashinfer_modules
from rayprep.sglang.gemm_shapes import GemmShape, gemm_shapes, listed_shapes
from rayprep.sglang.inventory import Inventory, ModelFacts, Refusal, Unasked, parse_answer
from rayprep.sglang.moe_shape import MoeShape, NoTritonKernel, UnknownKernel, listed_moe_shape, moe_shape

TESTS = Path(__file__).parents[1]
RECORDED = TESTS / "data/inventory"
RELEASES = ("0.5.16", "0.5.23")
ON_GPU = sorted((TESTS / "gpu/evidence/inventory").glob("*.json"))
LOGS = sorted((TESTS / "data/gemm").glob("*.log"))
SAID = re.compile(r"Try DeepGEMM JIT Compiling for <(\w+)> N=(\d+), K=(\d+), num_groups=(\d+)")


def recorded(release: str, name: str) -> Inventory:
    return read_tolerant(Inventory, (RECORDED / release / f"{name}.json").read_bytes())


def model(name: str) -> Architecture:
    path = TESTS / "gpu/models" / name / "config.json"
    return parse_architecture(path.read_text(encoding="utf-8"), name)


def products(inventory: Inventory) -> set[tuple[str, int, int, int]]:
    shapes = listed_shapes(inventory)
    assert shapes is not None
    return {(shape.kind.removeprefix("GROUPED_GEMM_NT_F8F8BF16_"), shape.n, shape.k, shape.groups) for shape in shapes}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deepseek-v3-tp8", "E=257 N=256 K=7168 topk=9 fp8_w8a8 128x128"),
        ("deepseek-v3.2-tp8", "E=256 N=256 K=7168 topk=8 fp8_w8a8 128x128"),
        ("glm-4.6-tp8", "E=161 N=192 K=5120 topk=9 bfloat16"),
        ("glm-4.5-air-fp8-tp4", "E=129 N=352 K=4096 topk=9 fp8_w8a8 per_channel"),
        ("qwen3-next-tp4", "E=513 N=128 K=2048 topk=11 bfloat16"),
        ("qwen3-30b-a3b-fp8-tp1", "E=128 N=768 K=2048 topk=8 fp8_w8a8 128x128"),
        ("qwen3-vl-moe-tp1", "E=128 N=768 K=2048 topk=8 fp8_w8a8 128x128"),
        ("mixtral-tp2", "E=8 N=7168 K=4096 topk=2 bfloat16"),
    ],
)
def test_the_experts_of_each_release(release: str, name: str, said: str) -> None:
    inventory = recorded(release, name)
    shape = listed_moe_shape(inventory, ())
    assert isinstance(shape, MoeShape), shape
    assert str(shape) == said
    (file,) = {experts.config_file for experts in inventory.experts}
    assert file is not None
    assert file.startswith(f"E={shape.experts},N={shape.width},device_name=NVIDIA_H200"), "SGLang's own word"
    assert (f"dtype={shape.dtype}" in file, "per_channel_quant=True" in file) == (bool(shape.dtype), shape.per_channel)


@pytest.mark.parametrize("release", RELEASES)
def test_what_runs_by_no_triton_kernel_is_not_tuned(release: str) -> None:
    dense = listed_moe_shape(recorded(release, "llama-3-8b-tp1"), ())
    assert isinstance(dense, NoTritonKernel)
    assert dense.reason == "dense_model"
    by_deep_gemm = listed_moe_shape(recorded(release, "deepseek-v3-tp8-experts"), ())
    assert isinstance(by_deep_gemm, NoTritonKernel)
    assert by_deep_gemm.detail == "SGLang runs Fp8MoEMethod experts with deep_gemm"
    assert not isinstance(listed_moe_shape(recorded(release, "gpt-oss-20b-tp1"), ()), MoeShape)
    flags = ("--enable-deterministic-inference",)
    assert isinstance(listed_moe_shape(recorded(release, "mixtral-tp2"), flags), NoTritonKernel)


def test_the_users_type_must_be_the_models() -> None:
    with pytest.raises(BadRequest, match="moe dtype fp8_w8a8 is not the model's, which is bf16"):
        listed_moe_shape(recorded("0.5.16", "mixtral-tp2"), (), "fp8_w8a8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gated": False}, "experts without a gate"),
        ({"activation": "gelu"}, "experts with gelu"),
        ({"method": "SomeNewMoEMethod"}, "SomeNewMoEMethod"),
        ({"weights": {"w13_weight_packed": (8, 64, 64), "w2_weight_packed": (8, 64, 64)}}, "weights [] and []"),
        ({"weights": {"w13_weight": (8, 100, 64), "w2_weight": (8, 64, 64)}}, "[8, 100, 64]"),
    ],
)
def test_experts_whose_kernel_is_not_ours_are_left_to_the_server(changes: dict[str, object], said: str) -> None:
    whole = recorded("0.5.16", "mixtral-tp2")
    experts = whole.experts[0].model_copy(update=changes)
    found = listed_moe_shape(whole.model_copy(update={"experts": (experts,)}), ())
    assert isinstance(found, UnknownKernel)
    assert said in found.message


def test_latent_experts_are_tuned_at_the_width_that_they_work_in() -> None:
    whole = recorded("0.5.16", "mixtral-tp2")
    latent = {"w13_weight": (8, 14336, 1024), "w2_weight": (8, 1024, 7168)}
    experts = whole.experts[0].model_copy(update={"weights": latent})
    found = listed_moe_shape(whole.model_copy(update={"experts": (experts,)}), ())
    assert isinstance(found, MoeShape)
    assert (found.hidden, found.width) == (1024, 7168)


def test_layers_with_unlike_experts_are_left_to_the_server() -> None:
    whole = recorded("0.5.16", "mixtral-tp2")
    both = (*whole.experts, whole.experts[0].model_copy(update={"top_k": 4}))
    assert isinstance(listed_moe_shape(whole.model_copy(update={"experts": both}), ()), UnknownKernel)


@pytest.mark.parametrize("release", RELEASES)
def test_deepseek_v3s_products_at_tp_8(release: str) -> None:
    linear = "GEMM_NT_F8F8BF16"
    public = {(2112, 7168), (3072, 1536), (4096, 512), (7168, 2048), (4608, 7168), (7168, 2304)}
    assert products(recorded(release, "deepseek-v3-tp8")) == {(linear, n, k, 1) for n, k in public}
    layouts = ("MASKED",) if release == "0.5.16" else ("MASKED", "CONTIG")
    experts = {(layout, n, k, 257) for layout in layouts for n, k in ((512, 7168), (7168, 256))}
    assert products(recorded(release, "deepseek-v3-tp8-experts")) == {(linear, n, k, 1) for n, k in public} | experts


@pytest.mark.parametrize("release", RELEASES)
def test_what_no_table_has_is_listed(release: str) -> None:
    """A model with a vision tower, and the indexer of sparse attention."""
    assert {shape[1:3] for shape in products(recorded(release, "qwen3-vl-moe-tp1"))} == {(5120, 2048), (2048, 4096)}
    assert {(8192, 1536), (128, 7168)} <= {shape[1:3] for shape in products(recorded(release, "deepseek-v3.2-tp8"))}
    assert products(recorded(release, "glm-4.5-air-fp8-tp4")) == set(), "FP8 with a scale for each channel"


def test_experts_of_another_type_are_left_to_the_server() -> None:
    whole = recorded("0.5.16", "deepseek-v3-tp8-experts")
    packed = whole.experts[0].model_copy(update={"dtype": "uint8"})
    assert listed_shapes(whole.model_copy(update={"experts": (packed,)})) is None
    plain = whole.experts[0].model_copy(update={"dtype": "bfloat16"})
    listed = listed_shapes(whole.model_copy(update={"experts": (plain,)})) or ()
    assert {shape.kind for shape in listed if shape.groups > 1} == {"GROUPED_GEMM_NT_BF16_MASKED"}
    assert listed_shapes(whole.model_copy(update={"deep_gemm_rows": None})) == ()


@pytest.mark.parametrize("release", RELEASES)
def test_blocks_are_blocks_whoever_stores_them(release: str) -> None:
    """compressed-tensors' own scheme runs Qwen3-32B's layers as SGLang's FP8 does."""
    blocks = products(recorded(release, "qwen3-32b-ct-blocks-tp2"))
    assert blocks == products(recorded(release, "qwen3-32b-fp8-tp2")) != set()


def test_heads_before_absorption_are_known_where_a_rank_has_one() -> None:
    """Then the absorbed layer has as many heads for keys as for queries, too."""
    whole = recorded("0.5.16", "deepseek-v3-tp8-flashinfer")
    alone = tuple(layer.model_copy(update={"heads": 1, "kv_heads": 1}) for layer in whole.attention)
    for layers in (alone, alone[::-1]):
        inventory = whole.model_copy(update={"attention": layers})
        flags = ("--attention-backend", "flashinfer")
        found = flashinfer_modules(model("deepseek-v3-fp8"), 8, flags, inventory)
        assert found == flashinfer_modules(model("deepseek-v3-fp8"), 8, flags, whole)


def test_a_draft_models_layers_are_listed_too() -> None:
    whole = recorded("0.5.16", "mixtral-tp2")
    draft = recorded("0.5.16", "deepseek-v3-tp8")
    layers = {name: getattr(draft, name) for name in ModelFacts.model_fields}
    both = whole.model_copy(update={"draft": ModelFacts(**layers)})
    assert products(both) == products(draft)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("name", "config", "tp", "flags"),
    [
        ("qwen3-32b-fp8-tp2", "qwen3-fp8-3l", 2, ("--attention-backend", "flashinfer")),
        ("deepseek-v3-tp8-flashinfer", "deepseek-v3-fp8", 8, ("--attention-backend", "flashinfer")),
        ("deepseek-v3-tp8", "deepseek-v3-fp8", 8, ()),
    ],
)
def test_the_tables_say_the_same_of_the_families_that_they_know(
    release: str, name: str, config: str, tp: int, flags: tuple[str, ...]
) -> None:
    inventory, architecture = recorded(release, name), model(config)
    assert gemm_shapes(architecture, tp, flags, release) == listed_shapes(inventory)
    assert flashinfer_modules(architecture, tp, flags) == flashinfer_modules(architecture, tp, flags, inventory)
    by_tables = moe_shape(architecture, tp, flags)
    assert by_tables == listed_moe_shape(inventory, flags)


@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.stem)
def test_an_h200_says_what_the_tables_do(path: Path) -> None:
    inventory = read_tolerant(Inventory, path.read_bytes())
    flags = ("--moe-runner-backend", "deep_gemm") if "experts" in path.stem else ()
    config = {"alone": "qwen3-fp8-3l"}.get(path.stem, re.sub("-tp8.*", "", path.stem))
    architecture = model("deepseek-v3-fp8" if config == "deepseek-v3" else config)
    assert listed_shapes(inventory) == gemm_shapes(architecture, inventory.tp, flags, inventory.sglang)
    shapes = listed_moe_shape(inventory, flags), moe_shape(architecture, inventory.tp, flags)
    assert shapes[0] == shapes[1] or all(isinstance(shape, NoTritonKernel) for shape in shapes)


@pytest.mark.parametrize("log", [log for log in LOGS if any(path.stem == log.stem for path in ON_GPU)], ids=str)
def test_an_h200s_servers_named_what_it_lists(log: Path) -> None:
    (path,) = [path for path in ON_GPU if path.stem == log.stem]
    named = {
        GemmShape(kind=kind, n=int(n), k=int(k), groups=int(groups))
        for kind, n, k, groups in SAID.findall(log.read_text(encoding="utf-8"))
    }
    assert named
    assert set(listed_shapes(read_tolerant(Inventory, path.read_bytes())) or ()) == named


def test_a_window_is_left_to_the_server_and_a_cache_in_fp8_is_not() -> None:
    whole, llama = recorded("0.5.16", "llama-3-8b-tp1"), model("llama-fp8-2l")
    before = flashinfer_modules(llama, 1, (), whole)
    assert "batch_prefill" in str(before[0])
    windowed = tuple(layer.model_copy(update={"window": 1024}) for layer in whole.attention)
    after = flashinfer_modules(llama, 1, (), whole.model_copy(update={"attention": windowed}))
    assert {str(module) for module in after} == {"sampling", "norm"}
    exported = flashinfer_modules(llama, 1, (), whole.model_copy(update={"kv_cache_quantization": "FP8"}))
    assert any(":e4m3:" in str(module) for module in exported)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ('{"refused": "no"}', Refusal(refused="no")),
        ('{"unknown": "why"}', Unasked(unknown="why")),
        ("[2026-12-01] a line of a log", None),
        ("{}", None),
        ('{"sglang": "0.5.16"}', None),
        ("", None),
    ],
)
def test_other_lines_are_no_answer(line: str, answer: Refusal | Unasked | None) -> None:
    assert parse_answer(line) == answer


@pytest.mark.parametrize(
    "path", ["linears.0.n", "experts.0.local", "experts.0.weights.w13_weight.1", "attention.0.heads"]
)
def test_an_answer_with_a_size_of_nothing_is_none(path: str) -> None:
    whole = recorded("0.5.16", "deepseek-v3-tp8").model_dump(mode="json")
    *outer, last = path.split(".")
    place = whole
    for part in outer:
        place = place[int(part) if isinstance(place, list) else part]
    place[int(last) if isinstance(place, list) else last] = 0
    assert parse_answer(json.dumps(whole)) is None


def test_an_answer_reads_back_as_it_was() -> None:
    line = json.dumps(recorded("0.5.16", "deepseek-v3-tp8").model_dump(mode="json"))
    assert parse_answer(line) == recorded("0.5.16", "deepseek-v3-tp8")
