"""What is blotted out of a command, and of a log."""

import pytest

from rayprep.model.secrets import redacted_command, redacted_text

PROGRAM = "cd /x && HF_TOKEN=hf_1 exec python -m sglang.launch_server --api-key sk-1 --admin-api-key='s k' --port 1"
SHOWN = "cd /x && HF_TOKEN=*** exec python -m sglang.launch_server --api-key *** --admin-api-key=*** --port 1"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("--api-key", "sk-1"), ("--api-key", "***")),
        (("--api-key=sk-1", "x"), ("--api-key=***", "x")),
        (("--admin_api_key", "sk-1", "--port", "1"), ("--admin_api_key", "***", "--port", "1")),
        (("--ssl-keyfile-password=x", "--ssl-keyfile", "y"), ("--ssl-keyfile-password=***", "--ssl-keyfile", "y")),
        # argparse takes the beginning of a flag for the flag
        (
            ("--api", "sk-1", "--admin=sk-2", "--ssl-keyfile-p", "x"),
            ("--api", "***", "--admin=***", "--ssl-keyfile-p", "***"),
        ),
        (("--hf-token", "hf_1", "--token=hf_2"), ("--hf-token", "***", "--token=***")),
        (("env", "HF_TOKEN=hf 1", "python"), ("env", "HF_TOKEN=***", "python")),
        (("docker", "run", "-e", "HF_TOKEN=hf_1", "img"), ("docker", "run", "-e", "HF_TOKEN=***", "img")),
        (("--env=HF_TOKEN=hf_1", "-eMY_API_KEY=x"), ("--env=HF_TOKEN=***", "-eMY_API_KEY=***")),
        (("bash", "-lc", PROGRAM), ("bash", "-lc", SHOWN)),
        (("sh", "-c", "HF_TOKEN=hf_1 exec serve"), ("sh", "-c", "HF_TOKEN=*** exec serve")),
    ],
)
def test_a_command_is_written_down_without_its_secrets(words: tuple[str, ...], shown: tuple[str, ...]) -> None:
    assert redacted_command(words) == shown
    assert redacted_command(shown) == shown, "twice is once"


@pytest.mark.parametrize(
    "words",
    [
        ("--port", "1", "--model-path", "key"),
        ("--tokenizer-path", "/t", "--max-total-tokens=4096", "--tokenizer-mode=auto"),
        ("--speculative-token-map", "/m", "--kt-max-deferred-experts-per-token", "2"),
        ("--speculative-token-map=/m", "env", "TOKENIZERS_PARALLELISM=true", "A=b=c"),
        ("sh", "-c", "exec env A=1  B=2 \t\n python --tp 2 --json '{\"a\": 1}'"),
        (),
    ],
)
def test_the_rest_stays_as_it_is(words: tuple[str, ...]) -> None:
    assert redacted_command(words) == words


def test_the_arguments_that_a_server_prints_are_shown_without_its_keys() -> None:
    said = """server_args=ServerArgs(tp_size=1, api_key='sk-1', admin_api_key="s'k", ssl_keyfile_password=None, x='y"""
    shown = "server_args=ServerArgs(tp_size=1, api_key=***, admin_api_key=***, ssl_keyfile_password=None, x='y"
    assert redacted_text(said) == shown
    assert redacted_text("api_key='sk-that-was-cut") == "api_key=***"
