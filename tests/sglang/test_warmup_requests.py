"""The requests of a warm-up: what they reach, and what they cost."""

import json

import pytest

from rayprep.sglang.warmup_requests import GenerateRequest, Round, warmup_requests

VOCAB, CONTEXT, BATCH, CHUNK = 151_936, 40_960, 256, 8192


@pytest.fixture(scope="module")
def rounds() -> tuple[Round, ...]:
    return warmup_requests(VOCAB, CONTEXT, BATCH, CHUNK)


def requests(rounds: tuple[Round, ...]) -> list[GenerateRequest]:
    return [request for each in rounds for request in each]


def alone(rounds: tuple[Round, ...]) -> set[int]:
    return {len(each[0].input_ids[0]) for each in rounds if len(each) == 1 and len(each[0].input_ids) == 1}


def test_every_prefill_length_is_reached(rounds: tuple[Round, ...]) -> None:
    assert {1 << i for i in range(14)} <= alone(rounds), "1 to 8192, each in a prefill of its own"
    assert {3, 17, 33, 1025, 4097} <= alone(rounds), "and lengths that 16 does not divide"
    assert CHUNK + 17 in alone(rounds), "and a second chunk"


def test_decode_is_long_enough(rounds: tuple[Round, ...]) -> None:
    assert {128, 256} <= {request.sampling_params.max_new_tokens for request in requests(rounds)}


def test_batches_double_up_to_the_largest_that_is_captured() -> None:
    sizes = {len(request.input_ids) for request in requests(warmup_requests(VOCAB, CONTEXT, 160, CHUNK))}
    assert {1, 2, 4, 8, 16, 32, 64, 128, 160} <= sizes
    assert max(sizes) == 160


def test_every_way_of_sampling_alone_and_all_at_once(rounds: tuple[Round, ...]) -> None:
    def ways(request: GenerateRequest) -> tuple[bool, bool, bool, bool]:
        how = request.sampling_params
        return how.temperature > 0, how.top_p < 1, how.top_k > 0, how.min_p > 0

    wanted = {
        (False, False, False, False),
        (True, False, False, False),
        (True, True, False, False),
        (True, False, True, False),
        (True, True, True, False),
        (True, False, False, True),
    }
    for size in (1, 8, BATCH):
        assert wanted <= {ways(request) for request in requests(rounds) if len(request.input_ids) == size}
    assert any(wanted <= {ways(request) for request in each} for each in rounds)


def test_no_prompt_begins_like_another_but_where_that_is_meant(rounds: tuple[Round, ...]) -> None:
    prompts = [prompt for request in requests(rounds) for prompt in request.input_ids if len(prompt) >= 16]
    beginnings = [prompt[:8] for prompt in prompts]
    shared = {beginning for beginning in beginnings if beginnings.count(beginning) > 1}
    assert len(shared) == 1
    assert max(map(beginnings.count, shared)) == 5
    assert all(len(prompt) > 2048 for prompt in prompts if prompt[:8] in shared)


def test_ids_are_the_same_in_every_run_and_no_special_tokens(rounds: tuple[Round, ...]) -> None:
    assert rounds == warmup_requests(VOCAB, CONTEXT, BATCH, CHUNK)
    ids = {token for request in requests(rounds) for prompt in request.input_ids for token in prompt}
    assert min(ids) >= 0
    assert max(ids) < VOCAB * 0.9


def test_it_is_cheap(rounds: tuple[Round, ...]) -> None:
    steps = sum(max(request.sampling_params.max_new_tokens for request in each) for each in rounds)
    prefill = sum(len(prompt) for request in requests(rounds) for prompt in request.input_ids)
    assert steps < 700, "decode steps, at about 5 ms each on a fast GPU"
    assert prefill < 100_000


@pytest.mark.parametrize("context", [3, 9, 16, 100, 2048, 5000])
def test_everything_fits_a_short_context(context: int) -> None:
    for request in requests(warmup_requests(100, context, 8, CHUNK)):
        longest = max(map(len, request.input_ids))
        assert longest >= 1
        assert longest + request.sampling_params.max_new_tokens < context


def test_a_campaign_with_longer_prompts_gets_them() -> None:
    assert max(alone(warmup_requests(VOCAB, CONTEXT, 1, CHUNK, max_seq_len=20_000))) == 20_000
    assert max(alone(warmup_requests(VOCAB, 16_384, 1, None, max_seq_len=20_000))) == 16_384 - 8


def test_the_body_is_sglangs() -> None:
    body = json.loads(warmup_requests(100, 100, 1)[0][0].model_dump_json())
    assert set(body) == {"input_ids", "sampling_params", "stream"}
    assert isinstance(body["input_ids"][0][0], int)
    assert body["sampling_params"]["ignore_eos"] is True
