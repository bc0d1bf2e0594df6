"""The requests that bring a server to every kernel that a campaign will ask of it.

Token ids are random, but the same in every run: a server that has seen a prompt's beginning takes it from its radix
cache and skips that part of the prefill.
"""

import random
from collections.abc import Iterator, Sequence

from pydantic import Field

from rayprep.base.records import Record

LONGEST_PREFILL = 8192
"""Tokens of the longest prompt, unless a longer context is asked for."""
_BATCH_PROMPT, _BATCH_NEW = 16, 16
_DECODE_NEW = (128, 256)
_PREFIX = 2048
_SEED = 20250101
_KEPT_BACK = 8
"""Tokens of the context that SGLang (managers/tp_worker.py: max_req_input_len) lets no prompt have, and a few more."""


class Sampling(Record):
    """`sampling_params` of POST /generate. Source of the names: sglang/srt/sampling/sampling_params.py, 0.5.16."""

    max_new_tokens: int = Field(gt=0)
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    ignore_eos: bool = True


class GenerateRequest(Record):
    """The JSON body of one POST /generate: a batch of prompts as token ids, which a server without a tokenizer takes.

    The server answers with a list of as many results.
    """

    input_ids: tuple[tuple[int, ...], ...]
    sampling_params: Sampling
    stream: bool = False


Round = tuple[GenerateRequest, ...]
"""Requests that are sent at once. The next round waits until all of them are answered."""

GREEDY = {"temperature": 0.0}
SAMPLED: tuple[dict[str, float], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20},
    {"temperature": 0.8, "min_p": 0.05},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.05},
)
"""Each is a way of its own through SGLang's sampler (sglang/srt/layers/sampler.py)."""


def default_largest_batch(tp: int) -> int:
    """The largest decode batch that SGLang captures by itself at this TP on a GPU with 60 to 160 GB of memory.

    Sent where the server's log does not say how large a batch the campaign has. Source: `srt/server_args.py` of sglang
    0.5.16, `srt/arg_groups/memory_hook.py` of 0.5.23.
    """
    return 256 if tp < 4 else 512


def warmup_requests(
    vocab_size: int,
    context_length: int,
    max_batch: int,
    chunked_prefill: int | None = None,
    max_seq_len: int | None = None,
) -> tuple[Round, ...]:
    """Prefill from 1 token to 8k, decode of 128 and 256 tokens, batches of 1 to `max_batch`, greedy and sampled.

    Args:
        vocab_size: ids are below nine tenths of it, where no model keeps its special tokens.
        context_length: tokens that the server allows one sequence, prompt and answer together; no more than its KV
            cache holds.
        max_batch: the largest batch that decode is captured for.
        chunked_prefill: tokens of the server's prefill chunk; a prompt beyond it reaches the second chunk.
        max_seq_len: a longer prompt that the campaign will send.
    """
    prompts = _Prompts(vocab_size, context_length)
    rounds = (
        *_prefills(prompts, chunked_prefill, max_seq_len),
        *_decodes(prompts),
        *_batches(prompts, max_batch),
        *_shared_prefixes(prompts),
    )
    return tuple(rounds)


def decode_requests(vocab_size: int, batch_sizes: Sequence[int]) -> tuple[Round, ...]:
    """A few tokens in batches of these sizes, one after another."""
    prompts = _Prompts(vocab_size, _BATCH_PROMPT + _BATCH_NEW + _KEPT_BACK)
    return tuple((prompts.request(_BATCH_PROMPT, _BATCH_NEW, GREEDY, size),) for size in batch_sizes)


class _Prompts:
    """Makes requests that fit the context, of prompts that nobody has seen."""

    def __init__(self, vocab_size: int, context_length: int) -> None:
        self._random = random.Random(_SEED)
        self._ids = max(1, vocab_size * 9 // 10)
        self.room = max(2, context_length - 1)
        self.longest = max(1, context_length - _KEPT_BACK)

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(self._ids) for _ in range(length))

    def request(self, length: int, new: int, how: dict[str, float], batch: int = 1) -> GenerateRequest:
        return self.of([self.prompt(min(length, self.longest)) for _ in range(batch)], new, how)

    def of(self, prompts: list[tuple[int, ...]], new: int, how: dict[str, float]) -> GenerateRequest:
        longest = max(len(prompt) for prompt in prompts)
        fitting = {"max_new_tokens": max(1, min(new, self.room - longest)), **how}
        return GenerateRequest(input_ids=tuple(prompts), sampling_params=Sampling.model_validate(fitting))


def _prefills(prompts: _Prompts, chunked_prefill: int | None, max_seq_len: int | None) -> Iterator[Round]:
    """Powers of two and one more than each: Triton compiles apart for 1, for multiples of 16, and for the rest."""
    longest = min(max(LONGEST_PREFILL, max_seq_len or 0), prompts.longest)
    powers = [1 << i for i in range(longest.bit_length())]
    lengths = {length for power in powers for length in (power, power + 1) if length <= longest} | {longest}
    if chunked_prefill and 0 < chunked_prefill <= prompts.longest - 17:
        lengths.add(chunked_prefill + 17)
    for length in sorted(lengths):
        yield (prompts.request(length, 2, GREEDY),)


def _decodes(prompts: _Prompts) -> Iterator[Round]:
    short, long = _DECODE_NEW
    yield (prompts.request(64, short, GREEDY), prompts.request(100, long, SAMPLED[3]))


def _batches(prompts: _Prompts, max_batch: int) -> Iterator[Round]:
    """Doubling up to the largest, greedy; then each way of sampling alone, in a batch, and all of them in one."""
    sizes = sorted({1 << i for i in range(max_batch.bit_length())} | {max_batch})
    for size in sizes:
        yield (prompts.request(_BATCH_PROMPT, _BATCH_NEW, GREEDY, size),)
    for size in sorted({1, min(8, max_batch), max_batch}):
        for how in SAMPLED:
            yield (prompts.request(_BATCH_PROMPT, 4, how, size),)
    yield tuple(prompts.request(_BATCH_PROMPT, _BATCH_NEW, how) for how in (GREEDY, *SAMPLED))


def _shared_prefixes(prompts: _Prompts) -> Iterator[Round]:
    """A prompt, then others that begin alike: the attention of a prefix that is in the cache is a kernel of its own."""
    prefix = prompts.prompt(max(1, min(_PREFIX, prompts.longest // 2)))
    ends = [prefix + prompts.prompt(min(length, prompts.longest - len(prefix))) for length in (1, 33, 33, 33, 33)]
    yield (prompts.of(ends[:1], 4, GREEDY),)
    yield (prompts.of(ends[1:2], 4, GREEDY),)
    yield (prompts.of(ends[2:], 8, GREEDY),)
