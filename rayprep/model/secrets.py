"""What must not be written down or handed on: which names mean a secret, and how its value is blotted out."""

import re
from collections.abc import Sequence

BLOTTED = "***"
"""Stands for a secret that must not be written down."""

_VARIABLE = re.compile(
    # Not TOKENIZERS_PARALLELISM, and not SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION: they keep no secret, and a server
    # without them is another server.
    r"TOKEN(?!IZ|S_|S$)|(API|AUTH|ACCESS)_?TOKENS|SECRET|PASSWORD|PASSWD|PASSPHRASE|(API|ACCESS|PRIVATE)_?KEY|CREDENTIAL"
    r"|_(PASS|PAT|KEY)$|SSH_AUTH_SOCK",
    re.IGNORECASE,
)
_FLAG = re.compile(
    # The second half is what argparse takes for --api-key, --admin-api-key and --ssl-keyfile-password.
    r"(?:^|_)(?:key|(?<!per_)token|secret|password|passwd|passphrase|credentials?)$|^api|^admin|^ssl_keyfile_",
    re.IGNORECASE,
)
_VALUE = r"""("[^"]*"|'[^']*'|[^\s"']+)"""
_ASSIGNED = re.compile(rf"(\w+)=(?=\S){_VALUE}")
_FLAGGED = re.compile(rf"(?<!\S)(--[\w-]+)([=\s]\s*)(?!--){_VALUE}")
_PROGRAM = re.compile(r"-\w*c")
"""The flag of a shell before its program's text: `sh -c`, `bash -lc`."""
_IN_A_LOG = re.compile(r"""\b(\w*(?:api_key|password))=('[^']*'?|"[^"]*"?)""")


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable's value is a secret, from its name."""
    return _VARIABLE.search(name) is not None


def is_secret_flag(name: str) -> bool:
    """Whether a flag's value is a secret: `--api-key`, `--hf-token`, or the beginning of one of SGLang's own."""
    plain = name.lstrip("-").replace("-", "_")
    return name.startswith("--") and "=" not in name and _FLAG.search(plain) is not None


def redacted_command(command: Sequence[str]) -> tuple[str, ...]:
    """A whole command line as it may be written down: `--flag value`, `NAME=value`, and both in a shell's program."""
    shown: list[str] = []
    before = ""
    for word in command:
        shown.append(BLOTTED if is_secret_flag(before) else _redacted_word(word, before))
        before = word
    return tuple(shown)


def _redacted_word(word: str, before: str) -> str:
    name, equals, _ = word.partition("=")
    whole = is_secret_flag(name) or (re.fullmatch(r"-?\w+", name) and is_secret_variable(name))
    if equals and whole and not _PROGRAM.fullmatch(before):
        return f"{name}={BLOTTED}"
    return _FLAGGED.sub(_without_flag, _ASSIGNED.sub(_without_variable, word))


def _without_variable(found: re.Match[str]) -> str:
    # What is assigned may be an assignment itself: --env=HF_TOKEN=...
    value = BLOTTED if is_secret_variable(found[1]) else _ASSIGNED.sub(_without_variable, found[2])
    return f"{found[1]}={value}"


def _without_flag(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}{BLOTTED if is_secret_flag(found[1]) else found[3]}"


def redacted_line(line: str) -> str:
    """A line of SGLang's log as it may be written down; it prints its arguments, `api_key='...'` among them."""
    return _IN_A_LOG.sub(rf"\1={BLOTTED}", line)
