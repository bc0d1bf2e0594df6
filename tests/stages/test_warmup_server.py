"""What the warm-up server is asked, and what is written down of it."""

from dataclasses import replace

from rayprep.sglang.log import ResolvedArgs
from rayprep.stages.protocol import StageRequest
from rayprep.stages.warmup_server import rounds_for
from tests.stages.serve.test_jit_ahead import request

ALLOWED = ResolvedArgs(context_length=40960, decode_max_batch=4, max_total_tokens=4000)


def longest(args: ResolvedArgs) -> int:
    """Tokens of the longest sequence that is asked for, prompt and answer together."""
    asked = [each for requests in rounds_for(request(), args) for each in requests]
    return max(len(ids) + each.sampling_params.max_new_tokens for each in asked for ids in each.input_ids)


def test_without_a_word_of_the_server_the_batch_is_its_default_at_this_tp() -> None:
    asked = request()
    wider = replace(asked, spec=asked.spec.model_copy(update={"tp": 4}))
    for told, allowed, sizes in ((None, None, (256, 512)), (None, 300, (256, 300)), (320, None, (320, 320))):
        args = ResolvedArgs(context_length=40960, decode_max_batch=told, max_running_requests=allowed)
        assert (largest_batch(asked, args), largest_batch(wider, args)) == sizes


def largest_batch(asked: StageRequest, args: ResolvedArgs) -> int:
    return max(len(request.input_ids) for requests in rounds_for(asked, args) for request in requests)


def test_no_prompt_is_longer_than_the_kv_cache() -> None:
    """SGLang refuses one that is, however long its context may be (managers/tp_worker.py)."""
    assert 3000 < longest(ALLOWED) < 4000
    assert longest(ALLOWED.model_copy(update={"max_total_tokens": 10**6})) > 8192
    assert longest(ALLOWED.model_copy(update={"max_total_tokens": None})) > 8192
