"""The configs that a tuner can try, and what of a batch's size is compiled in."""

import pytest
from pydantic import ValidationError

from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.space import OFFICIAL, accumulators, curated, neighbours, official_space, specialisation

FP8 = MoeShape(experts=128, width=768, hidden=2048, top_k=8, dtype="fp8_w8a8", block=(128, 128))
HALF = MoeShape(experts=128, width=768, hidden=2048, top_k=8)


def test_the_official_space_is_as_large_as_the_official_tuners() -> None:
    assert [len(official_space(shape)) for shape in (HALF, FP8)] == [1920, 1280]
    assert len(set(official_space(HALF))) == 1920
    assert str(official_space(HALF)[0]) == (
        "BLOCK_SIZE_M=16,BLOCK_SIZE_N=32,BLOCK_SIZE_K=64,GROUP_SIZE_M=1,num_warps=4,num_stages=2"
    )


@pytest.mark.parametrize("shape", [FP8, HALF])
@pytest.mark.parametrize("tokens", [1, 64, 1024, 8192])
def test_the_short_list_is_short_and_of_the_official_space(shape: MoeShape, tokens: int) -> None:
    short = curated(shape, tokens)
    assert 10 <= len(short) <= 32
    assert set(short) <= set(official_space(shape))


def test_tiles_go_with_the_rows_that_an_expert_gets() -> None:
    assert {config.BLOCK_SIZE_M for config in curated(FP8, 1)} == {16, 32}
    assert {config.BLOCK_SIZE_M for config in curated(FP8, 8192)} == {64, 128}


@pytest.mark.parametrize("dtype", ["fp8_w8a8", None])
def test_few_experts_with_thousands_of_rows_each_get_high_tiles(dtype: str | None) -> None:
    mixtral = MoeShape(experts=8, width=14336, hidden=4096, top_k=2, dtype=dtype)
    for tokens in (8192, 16384, 65536):
        assert {config.BLOCK_SIZE_M for config in curated(mixtral, tokens)} == {64, 128}


@pytest.mark.parametrize("tokens", [1, 64, 1024, 8192])
def test_where_no_shipped_file_is_for_the_scaling_block_a_few_of_everything_are_tried(tokens: int) -> None:
    shape = FP8.model_copy(update={"block": (64, 64)})
    short, heights = curated(shape, tokens), {each.BLOCK_SIZE_M for each in curated(FP8, tokens)}
    assert 20 <= len(set(short)) == len(short) <= 40
    assert set(short) <= set(official_space(shape))
    assert {each.BLOCK_SIZE_M for each in short} >= heights
    free = OFFICIAL.keys() - {"BLOCK_SIZE_M", "BLOCK_SIZE_K"}
    assert {name: {getattr(each, name) for each in short} for name in free} == {n: set(OFFICIAL[n]) for n in free}


def test_a_scaling_block_that_no_tile_divides_has_no_space() -> None:
    assert official_space(odd := FP8.model_copy(update={"block": (48, 48)})) == curated(odd, 64) == ()


def test_a_neighbour_is_one_step_away() -> None:
    centre = KernelConfig(
        BLOCK_SIZE_M=16, BLOCK_SIZE_N=128, BLOCK_SIZE_K=128, GROUP_SIZE_M=1, num_warps=4, num_stages=3
    )
    found = neighbours([centre], FP8)
    assert len(found) == 8  # M up; N both ways; K down, since 256 does not divide the block; group up; warps; stages
    assert all(
        sum(a != b for a, b in zip(centre.entry().values(), each.entry().values(), strict=True)) == 1 for each in found
    )
    assert set(found) <= set(official_space(FP8))
    default = KernelConfig(BLOCK_SIZE_M=64, BLOCK_SIZE_N=64, BLOCK_SIZE_K=32, GROUP_SIZE_M=8)
    assert neighbours([default], HALF), "SGLang's own may lie outside of the space, and have no warps"


def test_an_entry_is_what_sglang_reads() -> None:
    shipped = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "USE_TMA": True}
    assert KernelConfig.model_validate(shipped).entry() == shipped


def test_an_entry_holds_nothing_but_numbers() -> None:
    with pytest.raises(ValidationError, match="USE_TMA"):
        KernelConfig.model_validate({**official_space(FP8)[0].entry(), "USE_TMA": "x"})


@pytest.mark.parametrize(
    ("tokens", "block_m", "classes"),
    [
        (1, 16, ("sixteens", "any")),  # 8 rows, each in a tile of its own
        (2, 16, ("sixteens", "sixteens")),
        (16, 64, ("sixteens", "sixteens")),
        (17, 16, ("any", "any")),  # from 129 rows on each expert's are padded: 136 + 129 * 15
        (64, 64, ("any", "sixteens")),
    ],
)
def test_what_triton_compiles_in(tokens: int, block_m: int, classes: tuple[str, str]) -> None:
    assert specialisation(FP8, tokens, block_m, "0.5.18") == classes
    one = MoeShape(experts=8, width=768, hidden=2048, top_k=1)
    assert specialisation(one, 1, 16, None) == ("sixteens", "one")


@pytest.mark.parametrize(
    ("tokens", "early"), [(64, (True, True)), (65, (True, False)), (512, (True, False)), (513, (False, False))]
)
def test_the_next_kernel_is_launched_early_at_few_rows(tokens: int, early: tuple[bool, bool]) -> None:
    assert specialisation(FP8, tokens, 64, "0.5.19")[2:] == early, "eight rows a token in the second product"


@pytest.mark.parametrize(
    ("tokens", "release", "rows"),
    [
        (17, "0.5.21", "any"),  # 136 + 129 * 63 = 8263
        (17, "0.5.22", "any"),  # 8264
        (18, "0.5.21", "any"),  # 8271
        (18, "0.5.22", "sixteens"),  # 8272
        (18, "0.5.99", "sixteens"),  # as the newest that is known
    ],
)
def test_rows_come_in_fours(tokens: int, release: str, rows: str) -> None:
    assert specialisation(FP8, tokens, 64, release)[0] == rows


def test_what_takes_longest_to_compile_holds_the_most_sums_in_a_thread() -> None:
    config = KernelConfig(BLOCK_SIZE_M=256, BLOCK_SIZE_N=256, BLOCK_SIZE_K=64, GROUP_SIZE_M=1, num_warps=4)
    assert accumulators(config) == 512
    assert accumulators(config.model_copy(update={"num_warps": 8})) == 256
    assert accumulators(config.model_copy(update={"num_warps": None})) == 512, "Triton's default is 4"
    assert accumulators(None) == 0
