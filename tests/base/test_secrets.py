"""What is a secret, and what is blotted out of a command, a log and a file."""

import json
import time

import pytest

from rayprep.base.errors import BadRequest
from rayprep.base.secrets import (
    is_secret_variable,
    may_hold_secret,
    redacted_command,
    redacted_flags,
    redacted_json,
    redacted_settings,
    redacted_text,
    redacted_value,
)
from rayprep.model.events import Phase, event

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


@pytest.mark.parametrize(
    "value",
    ["'sk-1'", '"s\'k"', r"""'it\'s "so", yes'""", r'"a\"b"', r"'ends with \\'", "'sk-that-was-cut", "'cut behind \\"],
)
@pytest.mark.parametrize("name", ["api_key", "admin_api_key", "ssl_keyfile_password"])
def test_a_secret_in_quotes_is_shown_in_neither_form_of_the_arguments(name: str, value: str) -> None:
    cut = "cut" in value
    for before, after in (
        (f"ServerArgs(tp_size=1, {name}=", ", port=1)"),
        (f"{{'tp_size': 1, '{name}': ", ", 'port': 1}"),
    ):
        rest = "" if cut else after
        assert redacted_text(f"{before}{value}{rest}") == f"{before}***{rest}"


SECRETS = [
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN_2", "hf_token", "AWS_SESSION_TOKEN", "TOKEN"),
    *("NPM_TOKEN", "NPM_TOKENX", "GH_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_CLIENT_SECRET"),
    *("AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "AZURE_PASSWORD"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "KUBECONFIG", "DOCKER_AUTH_CONFIG", "NETRC", "VAULT_TOKEN"),
    *("VAULT_ADDR", "VAULT_SECRET_ID", "BW_SESSION", "PASSWORD", "DB_PASSWORD", "db_password", "DB_PASSWD"),
    *("PGPASSWORD", "PGPASSFILE", "PASS", "SSHPASS", "MYSQL_PWD", "SMTP_PASS", "ROOT_PASS", "DB_PASS2", "JENKINS_PSW"),
    *("LDAP_BIND_PW", "GPG_PASSPHRASE", "ANSIBLE_VAULT_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND"),
    *("SUDO_ASKPASS", "DATABASE_URL", "MY_DATABASE_URL", "REDIS_URL", "MONGODB_URI", "AMQP_URL"),
    *("SQLALCHEMY_DATABASE_URI", "SENTRY_DSN", "POSTGRES_DSN", "CLIENT_SECRET", "MY_SECRETS", "SECRET_KEY_BASE"),
    *("FLASK_SECRET_KEY", "OPENAI_API_KEY", "WANDB_APIKEY", "API_KEYS", "SSH_PRIVATE_KEY", "KEY", "MY_KEY"),
    *("TLS_KEY_FILE", "ENCRYPTION_KEY", "REDISCLI_AUTH", "HTTP_AUTH", "BASIC_AUTH", "NPM_CONFIG__AUTH"),
    *("SSH_AUTH_SOCK", "OAUTH2_CLIENT", "TWILIO_AUTH_TOKEN", "API_TOKENS", "MY_PAT", "CI_JOB_JWT", "COOKIE"),
    *("SESSION_COOKIE", "SLACK_WEBHOOK_URL", "GPG_AGENT_INFO", "OTEL_EXPORTER_OTLP_HEADERS"),
    *("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "TORCHINDUCTOR_REMOTE_CACHE_TOKEN", "TRITON_PASSWORD"),
]

PLAIN = [
    *(
        "PATH",
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_VISIBLE_DEVICES",
        "CXX",
        "LANG",
        "TMPDIR",
        "PYTHONPATH",
        "HOME",
        "USER",
    ),
    *("TERM", "LS_COLORS", "PWD", "OLDPWD", "NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST"),
    *("NVSHMEM_DISABLE_NVLS", "NVIDIA_DRIVER_CAPABILITIES", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("HF_HUB_DISABLE_IMPLICIT_TOKEN", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "http_proxy", "HTTPS_PROXY"),
    *("no_proxy", "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "SGLANG_INIT_NEW_TOKEN_RATIO"),
    *("SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR", "SGLANG_PER_TOKEN_GROUP_QUANT_8BIT_V2"),
    *("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", "SGLANG_LOG_DECODE_GRAPH_KEY"),
    *("TORCHINDUCTOR_DISABLED_PASSES", "TORCH_COMPILE_STICKY_PGO_KEY", "TORCH_COMPILE_CACHE_KEY_TAG"),
    *("TORCHINDUCTOR_REDIS_URL", "TORCH_TESTING_DEVICE_ONLY_FOR_KEY", "DEEPGEMM_EXTRA_PASS"),
    *("TRITON_DUMP_PASS", "LLVM_PASS_PLUGIN_PATH", "BYPASS", "COMPASS", "CACHE_KEY", "PASSTHROUGH"),
    *("GPU_PASSTHROUGH", "PASSIVE", "XAUTHORITY", "SSH_CONNECTION", "SSH_CLIENT", "KEYTAB", "KRB5CCNAME", "KEYBOARD"),
    *(
        "X_KEYBOARD",
        "KEYS",
        "SORT_KEYS",
        "MONKEY",
        "MONKEY_X",
        "GIT_AUTHOR_NAME",
        "AUTHOR",
        "AWS_REGION",
        "AWS_PROFILE",
    ),
    *("XDG_SESSION_ID", "DBUS_SESSION_BUS_ADDRESS", "PIP_INDEX_URL", "CPATH", "PATTERN", "CLASSPATH", "SIGNAL"),
    *("SASL_PATH", "PUBLIC_KEY", "ARRAY_SIZE", "SPRAY_X"),
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_name_says_that_it_is_a_secret(name: str) -> None:
    assert is_secret_variable(name)
    assert redacted_settings([f"{name}=x"]) == ()


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_that_only_looks_like_one_is_none(name: str) -> None:
    assert not may_hold_secret(name, "1")


URLS = [
    ("redis://:hunter2@cache:6379/0", "redis://***@cache:6379/0"),
    ("HTTPS://U:HUNTER2@[::1]:80/", "HTTPS://***@[::1]:80/"),
    ("https://hunter2@sentry.io/1", "https://***@sentry.io/1"),
    ("http://u:p@hunter2@h/x", "http://***@h/x"),
    ("http://u:hu/nt?er2@h/x", "http://***@h/x"),
    ("http://u%40c:hunter%202@h", "http://***@h"),
    ("redis://:hunter1@a:1,rediss://u:hunter2@b:2/x", "redis://***@a:1,rediss://***@b:2/x"),
    ("mongodb://u:hunter2@a:1,b:2/db", "mongodb://***@a:1,b:2/db"),
    ("postgresql+psycopg2://u:hunter2@h/db?sslmode=on", "postgresql+psycopg2://***@h/db?sslmode=on"),
    ("user:hunter2@host:6379", "***@host:6379"),
    ("http://h/?password=hunter2&a=1&token=hunter3#f", "http://h/?password=***&a=1&token=***#f"),
    ("http://h/?key=hunter2&sig=hunter3", "http://h/?key=***&sig=***"),
    ("http://h/x?url=redis%3A%2F%2F%3Ahunter2%40h%3A1&b=2", "http://h/x?url=redis%3A%2F%2F***%40h%3A1&b=2"),
    ("AccountName=x;AccountKey=hunter2==;E=1", "AccountName=x;AccountKey=***;E=1"),
    ("host=db user=u password=hunter2", "host=db user=u password=***"),
    ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer ***"),
    ("it says hf_" + "a" * 34, "it says ***"),
    ("x -----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY----- y", "x *** y"),
]
HARMLESS = [
    "http://h:80/a@b and https://x/@scope/p",
    "ssh://git@h/x git@github.com:o/r",
    "registry/repo:tag@sha256:1234",
    "max_new_tokens=5 tokenizer_path='/t' eos_token='</s>' num_tokens='5'",
    "#new-token: 7, #cached-token: 0, token usage: 0.00",
    "http://127.0.0.1:30000/health?x=1",
    "-O3 -DKEY=1",
]


@pytest.mark.parametrize(("text", "shown"), URLS)
def test_a_url_and_what_looks_like_a_secret_lose_it_wherever_text_is_written(text: str, shown: str) -> None:
    assert redacted_text(text) == shown
    assert redacted_text(shown) == shown, "twice is once"
    assert may_hold_secret("SOME_URL", text)
    assert redacted_settings([f"TORCHINDUCTOR_X={text}", "TORCHINDUCTOR_Y=1"]) == ("TORCHINDUCTOR_Y=1",)
    assert redacted_flags([f"x={text}", "--y=1", "--z"]) == (f"x={shown}", "--y=1", "--z")
    assert "unter" not in " ".join(redacted_command(["serve", "--x", text, f"--y={text}", f"A={text}"]))
    assert "unter" not in BadRequest(f"no model {text}", hint=f"not {text}").line
    said = event("ensure", Phase.WARNING, message=f'"{text}"\n{text}')
    assert "unter" not in said.human_line + said.json_line
    assert json.loads(said.json_line.removeprefix("OPTIMIZE_JSON "))["phase"] == "warning"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays_in_a_text(text: str) -> None:
    assert redacted_text(text) == text
    assert not may_hold_secret("NVCC_APPEND_FLAGS", text)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("SOME_URL", "u:hunter2@h", "***@h"),
        ("http_proxy", "u:hunter2@h:3128", "***@h:3128"),
        ("HTTPS_PROXY", "hunter2@h:3128", "***@h:3128"),
        ("otlp_endpoint", "a:1,u:hunter2@h", "a:1,***@h"),
        ("http_proxy", "h:3128", "h:3128"),
        ("no_proxy", "localhost,10.0.0.0/8", "localhost,10.0.0.0/8"),
        ("EMAIL", "me@example.org", "me@example.org"),
    ],
)
def test_a_url_without_a_scheme_is_known_by_its_variable(name: str, value: str, shown: str) -> None:
    assert redacted_value(name, value) == shown
    assert may_hold_secret(name, value) == (value != shown)


def test_json_stays_json_and_keeps_all_but_its_secrets() -> None:
    text = '"tail": \\ \n sk-' + "a" * 24
    document = {"a": [1, 1.5, None, {"é": text, "url": "redis://:hunter2@h"}], "token": "t", "n": "x"}
    for indent in (None, 2):
        shown = redacted_json(json.dumps(document, indent=indent), indent)
        assert json.loads(shown) == {
            "a": [1, 1.5, None, {"é": '"tail": \\ \n ***', "url": "redis://***@h"}],
            "token": "t",
            "n": "x",
        }
    plain = json.dumps({"a": 1})
    assert redacted_json(plain) == plain


@pytest.mark.parametrize(
    "piece",
    ["a", "://", ":@", "a=", "u:", "://a:b", "x://@", "'", "a='", "%3A%2F%2F", "sk-", "-----BEGIN ", "eyJaaaaaaaa."],
)
def test_no_text_takes_long(piece: str) -> None:
    started = time.monotonic()
    redacted_text(piece * (100_000 // len(piece)) + "@=%40 PRIVATE KEY")
    assert time.monotonic() - started < 5


def test_what_is_overwritten_where_it_lies_keeps_its_length() -> None:
    for text, _ in URLS:
        starred = redacted_text(text, lambda secret: "*" * len(secret))
        assert len(starred) == len(text)
        assert "unter" not in starred
