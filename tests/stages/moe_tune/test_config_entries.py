"""What a config file says, and which calls a server makes with it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rayprep.sglang.kernel_config import KernelConfig
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.config_entries import (
    LARGEST_BATCH,
    ConfigFiles,
    Launch,
    Stock,
    config_files,
    launches,
    without,
)
from rayprep.stages.moe_tune.search import Choice
from rayprep.stages.moe_tune.space import OFFICIAL, specialisation

SHAPE = MoeShape(experts=128, width=768, hidden=2048, top_k=8, dtype="fp8_w8a8", block=(128, 128))


def config(block_m: int = 16, block_n: int = 128) -> KernelConfig:
    sizes = {"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": block_n, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
    return KernelConfig(**sizes, num_warps=4, num_stages=3)


TUNED, OWN, OTHER = config(), config(64), config(32)


def test_the_file_has_an_entry_for_every_size() -> None:
    own = OWN
    stock = {size: Stock(config=own) for size in (1, 64, 8192)}
    choices = [
        Choice(tokens=1, config=config(), us=1.0, stock_us=2.0),
        Choice(tokens=64, config=None, us=2.0, stock_us=2.0),
    ]
    files = config_files(stock, choices, stock)
    # SGLang takes the nearest: without 64 and 8192 the config for one token would count there.
    assert files.up == {1: config(), 64: own, 8192: own}
    assert files.down is None


def test_a_shipped_file_for_the_second_product_is_overruled_where_tuned_and_kept_elsewhere() -> None:
    down = KernelConfig.model_validate({**config(128).entry(), "USE_TMA": True})
    stock = {1: Stock(config=OWN), 64: Stock(config=OWN, down=down)}
    files = config_files(stock, [Choice(tokens=1, config=config(), us=1.0, stock_us=2.0)], stock)
    assert files.down
    assert files.down[1] == config(), "what was measured is what runs"
    # Both products share one sorting by tiles, so that SGLang takes the first one's rows.
    assert files.down[64].entry() == {**OWN.entry(), "USE_TMA": True}


shapes = st.builds(
    lambda experts, top_k: SHAPE.model_copy(update={"experts": experts, "top_k": min(top_k, experts)}),
    st.integers(1, 512),
    st.integers(1, 24),
)
sizes_of_files = st.sets(st.integers(1, 64) | st.integers(1, LARGEST_BATCH), min_size=1, max_size=8)


def entry_of(size: int) -> KernelConfig:
    """Another one for every size, of any height."""
    heights = OFFICIAL["BLOCK_SIZE_M"]
    return config(heights[size % len(heights)], size)


@given(shapes, sizes_of_files, st.sampled_from(["0.5.16", "0.5.19", "0.5.23"]))
@settings(max_examples=20, deadline=None)
def test_whatever_a_server_compiles_of_a_file_is_launched(shape: MoeShape, sizes: set[int], release: str) -> None:
    files = ConfigFiles(up={size: entry_of(size) for size in sorted(sizes)})
    made = launches(files, shape, release)
    launched = {
        (size, specialisation(shape, launch.tokens, launch.up.BLOCK_SIZE_M, release))
        for size, calls in made.items()
        for launch in calls
    }
    takes: dict[int, list[int]] = {}
    for tokens in range(1, LARGEST_BATCH + 1):
        # As SGLang chooses: `configs[min(configs.keys(), key=lambda x: abs(x - M))]`.
        size = min(files.up, key=lambda size: abs(size - tokens))
        assert (size, specialisation(shape, tokens, files.up[size].BLOCK_SIZE_M, release)) in launched
        takes.setdefault(size, []).append(tokens)
    assert made.keys() == files.up.keys() == takes.keys()
    for size, calls in made.items():
        assert {launch.up for launch in calls} == {files.up[size]}
        assert {takes[size][0], takes[size][-1]} <= {launch.tokens for launch in calls} <= set(takes[size])
        assert [launch.tokens for launch in calls] == sorted({launch.tokens for launch in calls})
        assert len(calls) < (8 if release == "0.5.16" else 16)


def test_an_entry_is_launched_with_the_least_and_the_most_tokens_and_in_each_way() -> None:
    made = launches(ConfigFiles(up={1: TUNED, 64: TUNED, 8192: OWN}), SHAPE, "0.5.16")
    assert {size: [launch.tokens for launch in calls] for size, calls in made.items()} == {
        1: [1, 2, 17, 18, 32],  # for one token, an even number of few, an odd and an even one of many
        64: [33, 34, 4128],
        8192: [4129, 4130, LARGEST_BATCH],
    }


def test_an_entry_of_the_second_product_goes_along() -> None:
    files = ConfigFiles(up={1: TUNED, 64: TUNED}, down={1: OTHER, 64: OWN})
    made = launches(files, SHAPE, None)
    assert {launch.down for launch in made[1]} == {OTHER}
    assert {launch.down for launch in made[64]} == {OWN}
    assert made[1][0] == Launch(tokens=1, up=TUNED, down=OTHER)


def test_sizes_that_no_server_reaches_are_not_counted_up_to() -> None:
    made = launches(ConfigFiles(up={1: TUNED, 10**12: TUNED}), SHAPE, None)
    assert sum(len(calls) for calls in made.values()) < 16
    assert made[10**12][-1].tokens == 10**12


STOCK = {size: Stock(config=OWN) for size in (1, 8, 64)}


def test_what_fails_is_replaced_by_sglangs_own() -> None:
    files = ConfigFiles(up={1: TUNED, 8: TUNED, 64: OWN})
    assert without(files, [8], STOCK) == ConfigFiles(up={1: TUNED, 8: OWN, 64: OWN})


def test_where_sglangs_own_fails_too_the_entry_is_dropped() -> None:
    files = ConfigFiles(up={1: TUNED, 8: TUNED, 64: OWN})
    left = without(files, [1, 64], STOCK)
    assert left == ConfigFiles(up={1: OWN, 8: TUNED})
    assert list(left.up) == [1, 8], "in their order"
    # SGLang's file has that entry, and ours does not: that is a difference to keep.
    assert without(ConfigFiles(up={1: OWN, 8: OWN, 64: OWN}), [64], STOCK) == ConfigFiles(up={1: OWN, 8: OWN})


def test_no_file_is_left_that_says_what_sglang_does_by_itself() -> None:
    assert without(ConfigFiles(up={1: OWN, 8: TUNED, 64: OWN}), [8], STOCK) is None
    assert without(ConfigFiles(up={8: OWN}), [8], STOCK) is None, "nothing is left at all"


def test_the_second_products_entry_is_replaced_and_dropped_with_the_first_ones() -> None:
    second = OTHER.model_copy(update={"BLOCK_SIZE_M": OWN.BLOCK_SIZE_M})
    stock = {**STOCK, 8: Stock(config=OWN, down=OTHER)}
    files = ConfigFiles(up={1: TUNED, 8: TUNED, 64: OWN}, down={1: TUNED, 8: TUNED, 64: OWN})
    replaced = ConfigFiles(up={1: TUNED, 8: OWN, 64: OWN}, down={1: TUNED, 8: second, 64: OWN})
    assert without(files, [8], stock) == replaced
    assert without(replaced, [8], stock) == ConfigFiles(up={1: TUNED, 64: OWN}, down={1: TUNED, 64: OWN})
    # Only the second one's is ours: it is what gives way.
    half = replaced.model_copy(update={"down": {1: TUNED, 8: TUNED, 64: OWN}})
    assert without(half, [8], stock) == replaced
    only = ConfigFiles(up={8: OWN}, down={8: TUNED})
    assert without(only, [8], stock) is None
