"""The table of stages: names, order, codes, caches."""

from itertools import combinations

from rayprep.model.caches import CacheName
from rayprep.model.stages import ANSWERS_FOR, STAGES, StageName, exit_code

IN_ORDER = {"deep_gemm": 10, "moe_tune": 11, "flashinfer": 12, "inductor": 13, "serve": 14}


def test_names_order_and_codes_are_the_contract() -> None:
    assert [stage.value for stage in StageName] == list(IN_ORDER)
    assert {stage.value: facts.code for stage, facts in STAGES.items()} == IN_ORDER


def test_the_exit_code_is_the_first_failing_stages_whatever_the_order_given() -> None:
    assert exit_code([]) == 0
    for size in range(1, len(StageName) + 1):
        for failed in combinations(StageName, size):
            assert exit_code(list(reversed(failed))) == IN_ORDER[failed[0]]


def test_every_cache_of_the_snapshot_has_one_stage_that_answers_for_it() -> None:
    assert ANSWERS_FOR == {
        CacheName.DEEP_GEMM: StageName.DEEP_GEMM,
        CacheName.MOE_CONFIGS: StageName.MOE_TUNE,
        CacheName.TRITON: StageName.SERVE,
        CacheName.FLASHINFER: StageName.FLASHINFER,
        CacheName.TORCHINDUCTOR: StageName.INDUCTOR,
        CacheName.SGLANG_JIT: StageName.SERVE,
        CacheName.OTHERS: StageName.SERVE,
    }
    assert set(ANSWERS_FOR) == set(CacheName)
    assert all(cache in STAGES[stage].caches for cache, stage in ANSWERS_FOR.items())
