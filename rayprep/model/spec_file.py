"""Reads the seed contract's spec file, in both its forms, into values for `spec.resolve`.

A campaign is `{"campaign": [SPEC, SPEC, ...]}`: several requests, one after another.

Unknown keys are ignored with a warning that names the nearest known one. Layouts beyond tensor parallelism are
refused by name: a request half done is worse than one not done.
"""

import difflib
import json
from collections.abc import Iterable, Mapping

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record, encodable
from rayprep.model.spec import SPEC_VERSION
from rayprep.sglang.flags import refuse_layout

_PLAIN = {
    "model": "model",
    "model_path": "model",
    "tp": "tp",
    "batch_sizes": "batch_sizes",
    "block_sizes": "block_sizes",
    "max_seq_len": "max_seq_len",
    "timeout_s": "timeout_s",
    "heartbeat_s": "heartbeat_s",
    "warmup_port": "warmup_port",
    "mem_fraction": "mem_fraction",
    "device": "device",
    "server_args": "server_args",
    "load_format": "load_format",
    "deep_gemm_via": "deep_gemm_via",
    "slices": "slices",
    "verify": "verify",
    "server_command": "server_command",
    "otlp_endpoint": "otlp_endpoint",
}
_STAGE_NAMES = {
    "deep_gemm": "deep_gemm",
    "moe": "moe_tune",
    "moe_tune": "moe_tune",
    "triton": "moe_tune",
    "flashinfer": "flashinfer",
    "inductor": "inductor",
    "serve": "serve",
}
_POLICY = {
    "strategy": "moe_strategy",
    "dtype": "moe_dtype",
    "tuner_script": "moe_tuner_script",
    "batch_sizes": "moe_batch_sizes",
    "blocks": "moe_batch_sizes",  # what the contract's first form calls them
}
_ALIASES = {("strategy", "triton"): "auto", ("dtype", "fp8"): "fp8_w8a8"}
_OPS = {"ensure": "ensure", "rebuild": "rebuild", "tune": "rebuild", "skip": "skip"}


class SpecFile(Record):
    """`values` are keyed by PrepSpec's fields; `ignored` are dotted paths in the file."""

    values: dict[str, object]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]
    campaign: tuple["SpecFile", ...] = ()
    """Its requests, where it is one; it has no values of its own then."""


def parse_spec_file(text: str, source: str) -> SpecFile:
    """Parses a spec file's text.

    Raises:
        BadRequest: empty, not JSON, not an object, a wrong type where the form is fixed, another layout than TP, or
            a campaign of no requests or with values beside them.
    """
    document = _as_object(_load(text, source), source)
    if "campaign" not in document:
        return _read(document, source)
    requests = document.pop("campaign")
    return _campaign(requests, _read(document, source), source)


def _campaign(requests: object, around: SpecFile, source: str) -> SpecFile:
    """What is said around the requests is said of each."""
    if not isinstance(requests, list) or not requests:
        hint = 'such as {"campaign": [{"model": "tiny-dense"}]}'
        raise BadRequest(f"spec file {source}: campaign must be a list of requests, and have one at least", hint=hint)
    if around.values:
        hint = "put it into each of the requests, or give it as a flag"
        raise BadRequest(f"spec file {source}: {next(iter(around.values))} stands beside the campaign", hint=hint)
    campaign = []
    for number, each in enumerate(requests, 1):
        name = f"{source}, request {number}"
        own = _read(_as_object(each, name), name)
        said = {"ignored": around.ignored + own.ignored, "warnings": around.warnings + own.warnings}
        campaign.append(own.model_copy(update=said))
    return around.model_copy(update={"campaign": tuple(campaign)})


def _read(document: Mapping[str, object], source: str) -> SpecFile:
    reader = _Reader(source)
    for key, value in document.items():
        reader.top(key, value)
    return SpecFile(values=reader.values, ignored=tuple(reader.ignored), warnings=tuple(reader.warnings))


def _load(text: str, source: str) -> object:
    if not text.strip():
        raise BadRequest(f"spec file {source} is empty", hint="write a JSON object with at least model_path")
    try:
        loaded: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"spec file {source} is not JSON: {error}", hint="check it with python3 -m json.tool"
        ) from None
    return loaded


def _as_object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        raise BadRequest(f"{where} must be a JSON object, not {kind}", hint='write it as {"key": value, ...}')
    return value


class _Reader:
    """Collects values, ignored keys and warnings while it goes through the document."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.values: dict[str, object] = {}
        self.ops: dict[str, str] = {}
        self.ignored: list[str] = []
        self.warnings: list[str] = []

    def top(self, key: str, value: object) -> None:
        refuse_layout(key, value)
        if key == "campaign":
            raise BadRequest(f"spec file {self.source}: a campaign has no campaigns", hint="list all requests in one")
        if key == "schema_version":
            self._version(value)
        elif key == "ops":
            for name, op in _as_object(value, f"{self.source}: ops").items():
                self._op(name, op)
        elif key in _PLAIN:
            self.values[_PLAIN[key]] = value
        else:
            self._ignore(key, [*_PLAIN, "ops", "schema_version"])

    def _version(self, value: object) -> None:
        if str(value) != SPEC_VERSION:
            self.warnings.append(f"spec file {self.source} has schema_version {value!r}, read as {SPEC_VERSION}")

    def _op(self, name: str, value: object) -> None:
        stage = _STAGE_NAMES.get(name)
        if stage is None:
            self._ignore(f"ops.{name}", [f"ops.{known}" for known in _STAGE_NAMES])
            return
        known = ("mode", "op", "policy") if stage == "moe_tune" else ("mode", "op")
        fields: Mapping[str, object] = value if isinstance(value, dict) else {"mode": value}
        for key, inner in fields.items():
            if key not in known:
                self._ignore(f"ops.{name}.{key}", [f"ops.{name}.{each}" for each in known])
            elif key == "policy":
                self._policy(name, _as_object(inner, f"{self.source}: ops.{name}.policy"))
            else:
                self._set_op(name, stage, inner)
        self.values["ops"] = self.ops

    def _set_op(self, name: str, stage: str, value: object) -> None:
        if not isinstance(value, str) or value not in _OPS:
            raise BadRequest(f"spec file {self.source}: ops.{name} is {value!r}", hint="use ensure, rebuild or skip")
        self.ops[stage] = _OPS[value]

    def _policy(self, name: str, policy: Mapping[str, object]) -> None:
        for key, value in policy.items():
            field = _POLICY.get(key)
            if field is None:
                self._ignore(f"ops.{name}.policy.{key}", [f"ops.{name}.policy.{known}" for known in _POLICY])
            else:
                self.values[field] = _ALIASES.get((key, str(value)), value)

    def _ignore(self, path: str, known: Iterable[str]) -> None:
        path = encodable(path)  # JSON's \\ud800 is a string that no file can hold
        close = difflib.get_close_matches(path, list(known), n=1, cutoff=0.5)
        self.ignored.append(path)
        nearest = f"; did you mean {close[0]}?" if close else ""
        self.warnings.append(f"spec file {self.source}: unknown key {path} ignored{nearest}")
