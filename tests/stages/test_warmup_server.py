"""What the warm-up server is asked, and what is written down of it."""

from rayprep.sglang.log import ResolvedArgs
from rayprep.stages.warmup_server import rounds_for
from tests.stages.serve.test_jit_ahead import request

ALLOWED = ResolvedArgs(context_length=40960, decode_max_batch=4, max_total_tokens=4000)


def longest(args: ResolvedArgs) -> int:
    """Tokens of the longest sequence that is asked for, prompt and answer together."""
    asked = [each for requests in rounds_for(request(), args) for each in requests]
    return max(len(ids) + each.sampling_params.max_new_tokens for each in asked for ids in each.input_ids)


def test_no_prompt_is_longer_than_the_kv_cache() -> None:
    """SGLang refuses one that is, however long its context may be (managers/tp_worker.py)."""
    assert 3000 < longest(ALLOWED) < 4000
    assert longest(ALLOWED.model_copy(update={"max_total_tokens": 10**6})) > 8192
    assert longest(ALLOWED.model_copy(update={"max_total_tokens": None})) > 8192
