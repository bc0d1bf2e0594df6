"""What must not be written down or handed on: how a secret is recognised, by its name or by its form, and blotted out.

A name says it where a word of it does: `DB_PASSWORD`, `HF_TOKEN`, `SSHPASS`. A value says it in a URL with userinfo, in
a parameter that is called so (`?token=...`), or by the form of a known kind of token. Too much is rather blotted out
than too little, but for what a server or a compiler reads: a server without it is another server.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence

BLOTTED = "***"
"""Stands for a secret that must not be written down."""

_STRONG = (
    r"PASSWOR[DT]|PASSWD|PASSWRD|PASSPHRASE|PASSCODE|PASS_?FILE|SECRET|CREDENTIAL|COOKIE|WEBHOOK|HTPASS"
    r"|(?:API|ACCESS|PRIVATE|ACCOUNT|SECRET|SIGNING|ENCRYPTION|LICENSE|MASTER|SHARED|SSH|GPG|AUTH)[_-]?KEY"
    r"|OAUTH|AUTHORIZATION|BEARER|CONN(?:ECTION)?_?STR(?:ING)?(?![A-Z])"
    # Not TOKENIZERS_PARALLELISM, SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION, SGLANG_INIT_NEW_TOKEN_RATIO or
    # SGLANG_PER_TOKEN_GROUP_QUANT_8BIT_V2.
    r"|(?<!PER[_-])(?<!NEW[_-])(?<!MAX[_-])(?<!MIN[_-])(?<!NUM[_-])(?<![BEP]OS[_-])(?<!PAD[_-])(?<!STOP[_-])"
    r"(?<!IMPLICIT[_-])TOKEN(?!IZ|S)"
    r"|(?:API|AUTH|ACCESS|REFRESH|SESSION|USER|BOT|HF|GITHUB|GITLAB)[_-]?TOKENS"
)
"""Parts of a name that mean a secret wherever they stand."""
_WHOLE_NAME = (
    r"SSH_AUTH_SOCK|GPG_AGENT_INFO|_?NETRC|KUBECONFIG|(?:BW|OP)_SESSION\w*|VAULT_\w+|\w*OTLP_(?:\w+_)?HEADERS"
    # Where a database is, of which nearly all say as whom, too.
    r"|(?:\w+_)?(?:DATABASE|DB|REDIS|MONGO(?:DB)?|AMQP|RABBITMQ|POSTGRES(?:QL)?|PG|MYSQL|MARIADB|BROKER|JDBC|LDAP|SMTP)"
    r"_?(?:URL|URI)|(?:\w+_)?DSN"
)
_WEAK = (
    r"(?!(?:OLD)?PWD$)(?:.*(?<!BY)(?<!COM)(?<!TRES)(?<!MULTI)(?<!SINGLE)PASS|.*PWD|(?:.*_)?(?:PAT|PW|PSW|JWT|SAS|SIG)"
    r"|(?:.*_)?(?<!PUBLIC_)(?<!CACHE_)(?<!SORT_)(?<!PARTITION_)(?<!PRIMARY_)(?<!HOST_)KEY(?:_?(?:ID|FILE|PATH|DATA))?"
    r"|(?:.*_)?AUTH(?:_.*)?)\d*"
)
"""Ends and words that mean a secret, but in what compilers and servers read: there a pass is one over the code, a key
one of a cache (`TORCH_COMPILE_STICKY_PGO_KEY`, `SGLANG_LOG_DECODE_GRAPH_KEY`)."""
_PROGRAMS = (
    r"(?:PY)?TORCH|INDUCTOR|AOT_?INDUCTOR|TRITON|MLIR|LLVM|FLASHINFER|DG_|SGL_|SGLANG|DEEP_?GEMM|NVCC|CUDA|NCCL|NVSHMEM"
)
_VARIABLE = re.compile(rf".*(?:{_STRONG})|(?!{_PROGRAMS})(?:(?:{_WHOLE_NAME})$|{_WEAK}$)", re.IGNORECASE)
_OF_A_URL = re.compile(r"(?:^|.*[_-])(?:URLS?|URIS?|ENDPOINTS?|PROXY|PROXIES|ADDR(?:ESS)?|HOSTS?|SERVERS?)$", re.I)
_FLAG = re.compile(
    # The second half is what argparse takes for --api-key, --admin-api-key and --ssl-keyfile-password.
    r"(?:^|_)(?:key|(?<!per_)token|secret|password|passwd|passphrase|credentials?|cookie|dsn)$|^api|^admin"
    r"|^ssl_keyfile_",
    re.IGNORECASE,
)

_USERINFO = re.compile(
    # Up to the last @ before the path. A password that nobody has encoded may hold what begins one.
    r"""://(?:[^\s/?#"'<>]*@|[^\s/?#:@"'<>\[]*:(?!\d+(?:[/?#]|$))(?:(?!://)[^\s"'<>])*@)"""
    # Encoded as a whole, in another URL's parameter.
    r"|%3A%2F%2F(?:(?!%2F)[^\s&\"'])*%40",
    re.IGNORECASE,
)
_ONLY_A_USER = re.compile(r"(?:ssh|sftp)://[\w.-]+@\Z", re.IGNORECASE)
_BARE_USERINFO = re.compile(
    r"(?<![\w.%/+-])[\w.%+-]{0,64}:[^\s/@\"'=,]{1,256}@(?!sha\d+:)(?=(?:[\w.-]{1,255}|\[[\da-f:]{2,45}\]):\d{1,5}\b)"
)
"""`user:password@host:port` without a scheme. Not an image's `name:tag@sha256:...`. With bounds, or a text without an
end would be searched from each of its colons."""
_BARE_URL = re.compile(r"(?:^|(?<=[,;\s]))[^\s,;/@]*(?::[^\s,;]*)?@")
_PARAMETER = re.compile(r"""(?<![\w.-])([A-Za-z][\w.-]*)(=)([^\s&;,"'#)\]}]+)""")
_QUOTED = re.compile(
    r"""(?<![\w.-])(["']?([A-Za-z][\w-]*)["']?[=:] ?)('(?:[^'\\]|\\.)*+\\?'?|"(?:[^"\\]|\\.)*+\\?"?)""", re.DOTALL
)
"""Named, with its value in quotes, as Python prints the fields of an object and of a dict, and as JSON has them. A
quote behind a backslash ends no value."""
_QUERY = re.compile(r"key|sig|signature|auth|pass|pwd|pw|token|code|session|sid", re.IGNORECASE)
"""Parameters that are secrets in a URL's query."""
_FORMS = re.compile(
    r"(?<![\w-])(?:(?:sk|rk|pk)-[\w-]{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{35}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
    r"|(?<=\b[Bb]earer )[\w.~+/=-]{8,}|(?<=\b[Bb]asic )[\w+/=]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END[A-Z ]*-----|\Z)"
)
_SIGNS = (
    *("sk-", "rk-", "pk-", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "hf_", "AKIA", "ASIA"),
    *("xox", "AIza", "eyJ", "earer ", "asic ", " PRIVATE KEY"),
)
"""One of them is in each of these forms. They are looked for first, since logs are long."""

_VALUE = r"""("[^"]*"|'[^']*'|[^\s"']+)"""
_ASSIGNED = re.compile(rf"(?<!\w)(\w+)=(?=\S){_VALUE}")
_FLAGGED = re.compile(rf"(?<!\S)(--[\w-]+)([=\s]\s*)(?!--){_VALUE}")
_PROGRAM = re.compile(r"-\w*c")
"""The flag of a shell before its program's text: `sh -c`, `bash -lc`."""

Blot = Callable[[str], str]
"""What is written in a secret's place."""


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable's value is a secret, from its name."""
    return _VARIABLE.match(name) is not None


def may_hold_secret(name: str, value: str) -> bool:
    """Whether a variable is a secret by its name, or has one in its value, such as a URL's password."""
    return is_secret_variable(name) or redacted_value(name, value) != value


def is_secret_flag(name: str) -> bool:
    """Whether a flag's value is a secret: `--api-key`, `--hf-token`, or the beginning of one of SGLang's own."""
    plain = name.lstrip("-").replace("-", "_")
    return name.startswith("--") and "=" not in name and _FLAG.search(plain) is not None


def redacted_value(name: str, value: str) -> str:
    """The value of a variable or flag as it may be written down, where its name alone does not make it a secret."""
    shown = redacted_text(value)
    # Its name says that it is a URL, whether or not it begins like one.
    return _BARE_URL.sub(f"{BLOTTED}@", shown) if _OF_A_URL.match(name) and "://" not in shown else shown


def redacted_text(text: str, blot: Blot = lambda _: BLOTTED) -> str:
    """Any text as it may be written down: a line of a log, a message, a URL. SGLang's log prints its arguments.

    Args:
        blot: gives what stands for each secret; of the same length for what is overwritten where it lies.
    """
    if "@" in text or "%40" in text:
        text = _USERINFO.sub(lambda found: _without_userinfo(text, found, blot), text)
        text = _BARE_USERINFO.sub(lambda found: blot(found[0][:-1]) + "@", text)
    if "=" in text or ":" in text:
        text = _QUOTED.sub(lambda found: found[1] + (blot(found[3]) if _hides(found[2]) else found[3]), text)
        text = _PARAMETER.sub(lambda found: _without_parameter(text, found, blot), text)
    return _FORMS.sub(lambda found: blot(found[0]), text) if any(sign in text for sign in _SIGNS) else text


def redacted_json(text: str, indent: int | None = None) -> str:
    """JSON text as `redacted_text` leaves each of its strings; compact, where no `indent` is given."""
    # Behind a backslash may be a quote, or a line's end: only the strings themselves are sure.
    if "\\" not in text and redacted_text(text) == text:
        return text
    separators = (",", ":") if indent is None else None
    return json.dumps(_redacted_tree(json.loads(text)), indent=indent, separators=separators, ensure_ascii=False)


def _redacted_tree(value: object) -> object:
    match value:
        case str():
            return redacted_text(value)
        case list():
            return [_redacted_tree(item) for item in value]
        case dict():
            return {key: _redacted_tree(item) for key, item in value.items()}
        case _:
            return value


def _without_userinfo(text: str, found: re.Match[str], blot: Blot) -> str:
    if _ONLY_A_USER.search(text[max(0, found.start() - 8) : found.end()]):
        return found[0]
    head, tail = (3, 1) if found[0].startswith("://") else (9, 3)
    return found[0][:head] + blot(found[0][head:-tail]) + found[0][-tail:]


def _without_parameter(text: str, found: re.Match[str], blot: Blot) -> str:
    name, value = found[1], found[3]
    in_query = found.start() > 0 and text[found.start() - 1] in "?&"
    hidden = _hides(name) or (in_query and _QUERY.fullmatch(name))
    return f"{name}={blot(value)}" if hidden and value not in (BLOTTED, "None") else found[0]


_HIDES = re.compile(rf".*(?:{_STRONG})|(?:.*[_-])?(?:pwd|passwd|dsn)$", re.IGNORECASE)


@functools.lru_cache(maxsize=1024)
def _hides(name: str) -> bool:
    return _HIDES.match(name) is not None


def redacted_command(command: Sequence[str]) -> tuple[str, ...]:
    """A whole command line as it may be written down: `--flag value`, `NAME=value`, and both in a shell's program."""
    shown: list[str] = []
    before = ""
    for word in command:
        shown.append(BLOTTED if is_secret_flag(before) else _redacted_word(word, before))
        before = word
    return tuple(shown)


def redacted_settings(settings: Iterable[str]) -> tuple[str, ...]:
    """Of variables, `NAME=value` each, those that hold no secret."""
    return tuple(setting for setting in settings if not may_hold_secret(*setting.partition("=")[::2]))


def redacted_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """Flags, `name=value` or `--name=value` each, with their secrets blotted out."""
    return tuple(_redacted_flag(*flag.partition("=")) for flag in flags)


def _redacted_flag(name: str, equals: str, value: str) -> str:
    secret = equals and is_secret_flag(f"--{name.lstrip('-')}")
    return name + equals + (BLOTTED if secret else redacted_value(name.lstrip("-"), value))


def _redacted_word(word: str, before: str) -> str:
    name, equals, _ = word.partition("=")
    whole = is_secret_flag(name) or (re.fullmatch(r"-?\w+", name) and is_secret_variable(name))
    if equals and whole and not _PROGRAM.fullmatch(before):
        return f"{name}={BLOTTED}"
    flag = before.lstrip("-") if before.startswith("--") and "=" not in before else ""
    return redacted_value(flag, _FLAGGED.sub(_without_flag, _ASSIGNED.sub(_without_variable, word)))


def _without_variable(found: re.Match[str]) -> str:
    # What is assigned may be an assignment itself: --env=HF_TOKEN=...
    value = _ASSIGNED.sub(_without_variable, redacted_value(found[1], found[2]))
    return f"{found[1]}={BLOTTED if is_secret_variable(found[1]) else value}"


def _without_flag(found: re.Match[str]) -> str:
    value = BLOTTED if is_secret_flag(found[1]) else redacted_value(found[1].lstrip("-"), found[3])
    return f"{found[1]}{found[2]}{value}"
