"""The command of a warm-up server, and what is read off a user's own."""

from itertools import chain

import pytest

from rayprep.base.errors import BadRequest
from rayprep.sglang.command import (
    ServerSettings,
    address_of,
    next_mem_fraction,
    option_of,
    proof_mem_fraction,
    refuse_tls,
    request_of,
    server_command,
    server_env,
    warmup_ports,
)


def command(*server_args: str, **settings: object) -> tuple[str, ...]:
    asked = ServerSettings.model_validate({"model_path": "/m", "server_args": server_args, **settings})
    return server_command(asked, 30999, 0.96, "/venv/bin/python")


def test_the_whole_command() -> None:
    assert command("--attention-backend", "flashinfer", context_length=8192, tp=2) == (
        *("/venv/bin/python", "-P", "-m", "sglang.launch_server", "--model-path", "/m"),
        *("--host", "127.0.0.1", "--port", "30999", "--tp-size", "2", "--mem-fraction-static", "0.96"),
        *("--load-format", "dummy", "--skip-tokenizer-init", "--context-length", "8192"),
        *("--watchdog-timeout", "3600", "--enable-metrics", "--attention-backend", "flashinfer"),
    )


def test_what_is_not_asked_for_is_not_said() -> None:
    words = command(skip_tokenizer=False, load_format="auto")
    assert "--skip-tokenizer-init" not in words
    assert "--context-length" not in words
    assert words[words.index("--load-format") + 1] == "auto"


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        (("--mem-fraction-static", "0.6"), "--mem-fraction-static"),
        (("--mem-fraction=0.6",), "--mem-fraction-static"),
        (("--load-format=auto",), "--load-format"),
        (("--skip-tokenizer-init",), "--skip-tokenizer-init"),
        (("--tp", "1"), "--tp-size"),
        (("--tensor-parallel-size=1",), "--tp-size"),
        (("--context-len", "4096"), "--context-length"),
        (("--watchdog-timeout", "60"), "--watchdog-timeout"),
        (("--enable-metrics",), "--enable-metrics"),
    ],
)
def test_what_the_user_says_is_not_said_twice(said: tuple[str, ...], ours: str) -> None:
    words = command(*said, context_length=8192)
    assert words[-len(said) :] == said
    assert ours not in words[: -len(said)]


def test_a_longer_flag_is_another_flag() -> None:
    assert "--enable-metrics" in command("--enable-metrics-for-all-schedulers")


def test_a_word_without_a_flag_is_refused() -> None:
    with pytest.raises(BadRequest):
        command("0.6")


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("python -m sglang.launch_server --model-path /m", ("127.0.0.1", 30000)),
        ("sglang serve --port 31000 --host 10.0.0.5", ("10.0.0.5", 31000)),
        ("sglang serve --port=31000 --host=0.0.0.0", ("127.0.0.1", 31000)),
        ("sglang serve --host :: --port 1 --por=2", ("127.0.0.1", 2)),
        ("sglang serve --host ::1", ("::1", 30000)),
        ("sglang serve --portable 7 --hostile x", ("127.0.0.1", 30000)),
    ],
)
def test_the_address_of_a_command(words: str, address: tuple[str, int]) -> None:
    assert address_of(words.split()) == address


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "--host"])
def test_what_is_no_port_is_refused(port: str) -> None:
    with pytest.raises(BadRequest, match="no port"):
        address_of(["serve", "--port", port])


@pytest.mark.parametrize(
    "launch",
    [
        "python -m sglang.launch_server",
        "docker run --gpus all -e A=b -p 30000:30000 --tp 9 image python -m sglang.launch_server",
        "numactl --cpunodebind=0 /venv/bin/python /x/sglang/launch_server.py",
        "srun --export=NONE --model=x /venv/bin/sglang serve",
    ],
)
def test_the_flags_are_sglangs_and_no_wrappers(launch: str) -> None:
    command = f"{launch} --model-path /m --port 30000 --tp=2 --attention-backend fa3".split()
    assert request_of(command) == {"model": "/m", "tp": "2", "server_args": ("--attention-backend", "fa3")}


@pytest.mark.parametrize("words", ["./start.sh --model /m --tp 8", "docker run --gpus all sglang server --tp 8", ""])
def test_a_command_that_hides_sglang_says_nothing(words: str) -> None:
    assert request_of(words.split()) == {}


@pytest.mark.parametrize("word", ["--ssl-certfile", "--ssl-certfile=/c", "--ssl-keyfile", "--ssl-cert"])
def test_tls_is_refused(word: str) -> None:
    with pytest.raises(BadRequest, match="plain HTTP"):
        refuse_tls(["--port", "1", word, "/x"])
    refuse_tls(["--port", "1", "--ssl-ca-certs", "/x"])


def test_an_option_is_found_in_either_form() -> None:
    assert option_of(["--api-key", "k"], "--api-key") == "k"
    assert option_of(["--api-key=a=b"], "--api-key") == "a=b"
    assert option_of(["--port", "1"], "--api-key") is None


def test_eight_slices_share_no_port() -> None:
    assert warmup_ports(30999) == (30999, 30998, 30997, 30996, 30995)
    ports = list(chain.from_iterable(warmup_ports(30999, index) for index in range(8)))
    assert len(set(ports)) == 40
    assert max(ports) == 30999


@pytest.mark.parametrize(
    ("tried", "following"),
    [((0.96,), 0.93), ((0.96, 0.93), None), ((0.93,), 0.88), ((0.6,), 0.55), ((0.6, 0.55), None), ((0.05,), None)],
)
def test_there_is_one_more_fraction(tried: tuple[float, ...], following: float | None) -> None:
    assert next_mem_fraction(tried) == following


def test_a_proof_runs_at_what_serve_came_to_unless_told_otherwise() -> None:
    assert proof_mem_fraction(0.96, None, insisted=False) == 0.96
    assert proof_mem_fraction(0.96, 0.93, insisted=False) == 0.93
    assert proof_mem_fraction(0.8, 0.93, insisted=False) == 0.8
    assert proof_mem_fraction(0.96, 0.93, insisted=True) == 0.96


def test_a_servers_own_variables_keep_a_users_build_of_flashinfer() -> None:
    assert server_env({})["FLASHINFER_JIT_DEBUG"] == "0"
    assert server_env({"FLASHINFER_JIT_VERBOSE": "1"})["FLASHINFER_JIT_DEBUG"] == "1"
    assert server_env({"FLASHINFER_JIT_DEBUG": "0", "FLASHINFER_JIT_VERBOSE": "1"})["FLASHINFER_JIT_DEBUG"] == "0"
    assert server_env({})["SGLANG_WARMUP_TIMEOUT"] == "3600"
    assert server_env({"SGLANG_WARMUP_TIMEOUT": "9"})["SGLANG_WARMUP_TIMEOUT"] == "9"
