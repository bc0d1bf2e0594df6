"""SGLang's own arguments: layouts refused by name, and what counts for a cache's identity."""

import argparse
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.sglang.flag_names import ALIASES, NAMES
from rayprep.sglang.flags import (
    ServerFlags,
    check_server_args,
    full_name,
    kernel_flags,
    pairs,
    redacted,
    refuse_layout,
)

SIZES = ["dp", "dp-size", "data-parallel-size", "moe-dp-size", "ep", "ep-size", "expert-parallel-size"]
SIZES += ["pp", "pp-size", "pipeline-parallel-size", "nnodes", "attn-cp-size", "dcp-size"]
SIZES += ["attn-dp-size", "attention-data-parallel-size", "dwdp-size"]
SWITCHES = ["enable-dp-attention", "enable-dp-lm-head", "enable-eplb", "enable-prefill-cp", "enable-kv-cache-sharding"]


@pytest.mark.parametrize("name", SIZES)
def test_a_layout_other_than_tp_is_refused_by_name(name: str) -> None:
    for args in ((f"--{name}", "2"), (f"--{name}=2",), (f"--{name.replace('-', '_')}", "2")):
        with pytest.raises(BadRequest, match=name.replace("-", "_")):
            check_server_args(args, 1)
    for value in (2, "2", 2.0, [2], "many"):
        with pytest.raises(BadRequest, match="tensor-parallel servers only"):
            refuse_layout(name.replace("-", "_"), value)


@pytest.mark.parametrize("name", SIZES)
def test_one_is_no_other_layout(name: str) -> None:
    check_server_args((f"--{name}", "1"), 1)
    check_server_args((f"--{name}=1",), 1)
    for value in (1, "1", 1.0, 0, "0", False, "false", None):
        refuse_layout(name, value)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_a_yes(name: str) -> None:
    """Python's True equals 1, which is no other layout when it is a size."""
    with pytest.raises(BadRequest, match=name.replace("-", "_")):
        check_server_args((f"--{name}",), 4)
    with pytest.raises(BadRequest, match=name):
        refuse_layout(name, True)
    refuse_layout(name, False)


@pytest.mark.parametrize(
    "args",
    [
        ("--data-parallel", "2"),
        ("--data-p=2",),
        ("--pipeline", "2"),
        ("--expert-p", "8"),
        ("--enable-dp-att",),
        ("--nn", "2"),
        ("--node", "1:2"),
        ("--dist-init", "10.0.0.1:2000"),
        ("--nccl-init-addr", "10.0.0.1:2000"),
    ],
)
def test_an_abbreviation_that_argparse_takes_hides_nothing(args: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest, match="tensor-parallel servers only"):
        check_server_args(args, 1)


@pytest.mark.parametrize("name", ["--tp", "--tp-size", "--tensor-parallel-size", "--tensor-parallel", "--tp_size"])
def test_tp_may_be_repeated_but_not_contradicted(name: str) -> None:
    check_server_args((name, "4"), 4)
    check_server_args((f"{name}=4",), 4)
    with pytest.raises(BadRequest, match="contradicts --tp 2"):
        check_server_args((name, "4"), 2)
    with pytest.raises(BadRequest, match="contradicts --tp 2"):
        check_server_args((name,), 2)


@pytest.mark.parametrize("name", ["--model", "--model-path", "--port", "--host", "--por"])
def test_what_rayprep_sets_itself_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="rayprep's own"):
        check_server_args((name, "x"), 1)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--attention-backend", "flashinfer"),
        ("--enable-torch-compile",),
        ("--cuda-graph-bs", "1", "2", "8"),
        ("--json-model-override-args", '{"num_hidden_layers": 4}'),
        ("--schedule-conservativeness", "-1"),
        ("--enable-metrics", "--log-level", "error"),
    ],
)
def test_everything_else_passes(args: tuple[str, ...]) -> None:
    check_server_args(args, 1)


def test_flags_are_joined_with_their_values_as_argparse_does() -> None:
    words = ("--a", "1", "--b=2", "--c", "--d", "x", "y", "--e=", "--f=a=b", "--g", "-1")
    assert pairs(words) == [
        ("--a", "1"),
        ("--b", "2"),
        ("--c", ""),
        ("--d", "x y"),
        ("--e", ""),
        ("--f", "a=b"),
        ("--g", "-1"),
    ]


def test_a_value_that_belongs_to_no_flag_is_refused() -> None:
    with pytest.raises(BadRequest, match="belongs to no flag"):
        check_server_args(("flashinfer", "--attention-backend"), 1)


def test_the_identity_is_in_the_flags_not_in_how_they_are_written() -> None:
    one = kernel_flags(("--b", "2", "--a-b=1", "--switch"))
    assert one == ("a_b=1", "b=2", "switch=")
    assert kernel_flags(("--switch", "--a_b", "1", "--b=2")) == one


def test_flags_that_change_no_kernel_are_not_in_the_identity() -> None:
    quiet = ("--log-level", "debug", "--enable-metrics", "--api-key", "x", "--tp", "8", "--load-format=dummy")
    assert kernel_flags((*quiet, "--attention-backend", "fa3")) == ("attention_backend=fa3",)
    assert kernel_flags(("--ssl-keyfile-password", "x", "--ssl-keyfile=k")) == (), "and a password is written nowhere"


def test_no_secret_is_in_the_identity_or_in_a_result() -> None:
    words = ("--api-k", "sk-1", "--hf-token=sk-2", "--speculative-token-map", "/m", "--max-experts-per-token", "8")
    assert kernel_flags(words) == ("max_experts_per_token=8", "speculative_token_map=/m")
    assert redacted(words[:3]) == ("--api-k=***", "--hf-token=***")


def test_a_flag_given_twice_is_another_identity_in_the_other_order() -> None:
    """SGLang takes the last one, so these are two different servers."""
    assert kernel_flags(("--a", "1", "--a", "2")) != kernel_flags(("--a", "2", "--a", "1"))


WORDS = st.lists(st.one_of(st.sampled_from(["--dp", "--tp", "--a", "1", "x", "--model"]), st.text(max_size=8)))


@given(WORDS, st.integers(1, 8))
def test_any_words_are_taken_or_refused_in_one_line(words: list[str], tp: int) -> None:
    try:
        check_server_args(tuple(words), tp)
    except BadRequest as error:
        assert len(error.line.splitlines()) == 1
    else:
        kernel_flags(tuple(words))


class Ambiguous(Exception):
    """An abbreviation begins several flags."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Ambiguous(message)


def sglangs_parser() -> Parser:
    """Python's own, with all of SGLang's flags."""
    parser = Parser(add_help=False)
    for name in sorted(NAMES):
        others = [alias for alias, full in ALIASES.items() if full == name]
        parser.add_argument(*(f"--{each.replace('_', '-')}" for each in (name, *others)), dest=name, nargs="?")
    return parser


PARSER = sglangs_parser()


@given(st.sampled_from(sorted([*NAMES, *ALIASES])), st.integers(1, 40), st.sampled_from(["=7", " 7"]))
def test_whatever_abbreviation_argparse_takes_is_the_whole_name(name: str, length: int, form: str) -> None:
    flag = f"--{name.replace('_', '-')[:length]}"
    words = f"{flag}{form}".split()
    try:
        parsed, rest = PARSER.parse_known_args(words)
    except Ambiguous:
        return
    assert rest == []
    (meant,) = (dest for dest, value in vars(parsed).items() if value == "7")
    assert dict(ServerFlags(words)) == {meant: "7"}
    assert full_name(flag) == full_name(f"--{flag[2:].replace('-', '_')}") == meant


def test_of_a_flag_that_is_given_twice_the_last_counts_whatever_it_is_called() -> None:
    flags = ServerFlags(("--tp", "2", "--tensor-parallel-size=4", "--attention-b", "triton", "--attention-backend=fa3"))
    assert dict(flags) == {"tp_size": "4", "attention_backend": "fa3"}


@pytest.mark.parametrize("name", ["--moe", "--a-flag-of-next-year", "--"])
def test_what_begins_no_flag_or_several_keeps_its_name(name: str) -> None:
    assert full_name(name) == name.strip("-").replace("-", "_")


@pytest.mark.parametrize(("value", "number"), [("16", 16), ("-1", -1), ("", None), ("many", None), ("9" * 99, None)])
def test_a_number_is_one_or_none(value: str, number: int | None) -> None:
    assert ServerFlags((f"--chunked-prefill-size={value}",)).number("chunked_prefill_size") == number
