"""What a finished stage leaves behind, and whether it still holds.

File: `<profiles>/.rayprep/<stage>/<key>.json`, one for each thing that was built, so that two layouts or two kinds
of GPU in one root never overwrite each other.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rayprep.base.records import FINITE, Located, Record, Utc, left_out
from rayprep.base.sealed import Sealed
from rayprep.model.proof import Verification
from rayprep.model.signature import Difference, Signature, answer_kind, binding_digest, differences
from rayprep.model.stages import StageName
from rayprep.model.tuning import Tuning
from rayprep.sglang.inventory import Inventory, variables_digest

COMPLETION_FORMAT = "2"
READ_FORMATS = ("1", COMPLETION_FORMAT)
"""Format 1 is format 2 without the checksum."""


_ADDED = ("inventory", "inventory.variables")
"""Fields that completions of this format had not from the first: those without are as good as they were."""


class Identity(Record):
    """What a completion is for, whatever host built it."""

    model_slug: str
    config_digest: str
    tp: int
    server_flags: tuple[str, ...] = ()
    """Those that change which kernels a server compiles, sorted."""
    compiler_settings: tuple[str, ...] = ()
    """Variables of the environment that change what TorchInductor and Triton compile, `NAME=value`, sorted."""
    part: str = ""
    """Of a fleet's build that several hosts share: which units; empty for the whole."""


Key = tuple[StageName, str]
"""Of a completion, in all of a store."""


def cache_key(stage: StageName, identity: Identity, signature: Signature) -> str:
    """`<slug>-tp<N>-<16 hex digits>`; the digits cover the whole identity and the fields that bind the stage."""
    fields = identity.model_dump(exclude=None if identity.part else {"part"})
    whole = [fields, binding_digest(stage, signature)]
    digits = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    return f"{identity.model_slug}-tp{identity.tp}-{digits}"


class Completion(Sealed):
    """A stage that was finished: for whom, under which signature, covering what, made of which files.

    The defaults are for those who make one. Read, it has to have every field, for each of them decides.
    """

    model_config = FINITE

    schema_version: str = COMPLETION_FORMAT
    stage: StageName
    key: str
    identity: Identity
    model_source: str
    """Where the model's config.json was, for people."""
    outcome: Literal["built", "skipped", "unsupported"] = "built"
    """`skipped`: there is rightly nothing to build here, and `reason` says why. `unsupported`: building `units` was
    tried, and does not work with these versions and flags."""
    tried: tuple[tuple[str, ...], ...] = ()
    """Other units of which the same was seen before."""
    reason: str | None = None
    signature: Signature
    units: tuple[str, ...] = ()
    """The coverage: one name for each graph, kernel or module, sorted."""
    artifacts: dict[str, tuple[int, str]] = Field(default_factory=dict)
    """Path below the profiles root -> (bytes, `sha256:...`)."""
    started_at: Utc
    finished_at: Utc
    duration_s: float
    run_id: str
    rayprep_version: str
    missed: tuple[str, ...] = ()
    """Of `units`, those that no plan had named before a server asked for them."""
    server_command: tuple[str, ...] = ()
    """The campaign's own server command, where one was given; of `serve` only."""
    mem_fraction: float | None = None
    """At which its server had memory enough, and at which it is proved; of `serve` only."""
    verification: Verification | None = None
    """The last proof on a server; of `serve` only."""
    verified_in_log: bool | None = None
    """A server's log has named the config; of `moe_tune` only."""
    verify_log: Located | None = None
    """That log, where the server ran on this host; of `moe_tune` only."""
    tuning: Tuning | None = None
    """What was measured for that config; of `moe_tune` only."""
    moe_configs: dict[str, str] = Field(default_factory=dict)
    """The MoE configs that its server looked for, `triton_<version>/<name>` -> what was there, as `sha256:...`, or
    nothing; of `serve` only."""
    inventory: Inventory | None = None
    """Answer of the installed SGLang to what the server needs; null where it was not asked."""

    @field_validator("artifacts")
    @classmethod
    def _stay_below_the_root(cls, artifacts: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
        for path in artifacts:
            if not {"", ".", ".."}.isdisjoint(path.split("/")):
                raise ValueError(f"{path!r} is no plain path below the profiles root")
        return artifacts

    @model_validator(mode="after")
    def _be_whole(self, info: ValidationInfo) -> "Completion":
        if info.mode == "json" and (missing := [name for name in left_out(self) if name not in _ADDED]):
            raise ValueError(f"it has no {missing[0]}")
        return self


def kept_answer(
    completions: Sequence[Completion], identity: Identity, now: Signature, environ: Mapping[str, str]
) -> Inventory | None:
    """The latest answer that was kept, of SGLang as it is here and for exactly this model, layout and flags."""
    alike, variables = answer_kind(now), variables_digest(environ)
    found = [
        (completion.finished_at, completion.inventory)
        for completion in completions
        if completion.inventory
        and completion.inventory.variables == variables
        and completion.identity == identity
        and answer_kind(completion.signature) == alike
    ]
    return max(found, key=lambda at: at[0])[1] if found else None


class CheckState(StrEnum):
    """How a completion stands against this host and this request."""

    VALID = "valid_signature"
    NOT_NEEDED = "not_needed"
    IN_PROGRESS = "in_progress_or_aborted"
    NO_COMPLETION = "no_completion"
    UNSUPPORTED = "unsupported"
    UNREADABLE = "completion_unreadable"
    NEWER_FORMAT = "completion_of_another_format"
    SIGNATURE_MISMATCH = "signature_mismatch"
    NOT_COVERED = "not_covered"
    FILES_MISSING = "files_missing"
    FILES_CHANGED = "files_changed"
    HASH_MISMATCH = "hash_mismatch"


class Check(Record):
    """The verdict on one stage. `damaged` are the listed files that are gone or altered."""

    state: CheckState
    detail: str = ""
    differences: tuple[Difference, ...] = ()
    damaged: tuple[str, ...] = ()
    missing_units: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        return self.state in (CheckState.VALID, CheckState.NOT_NEEDED)


def check_completion(
    completion: Completion,
    now: Signature,
    files: Mapping[str, int],
    units: Sequence[str] = (),
    wrong_hashes: Sequence[str] = (),
) -> Check:
    """Whether `completion` holds here.

    Args:
        files: every artifact that is there now, path below the profiles root -> bytes.
        units: what has to be covered.
        wrong_hashes: paths whose content was hashed and differs; empty where nothing was hashed.
    """
    if completion.schema_version != COMPLETION_FORMAT:
        return Check(
            state=CheckState.NEWER_FORMAT,
            detail=f"format {completion.schema_version}, this rayprep reads {COMPLETION_FORMAT}",
        )
    if differing := differences(completion.stage, completion.signature, now):
        return Check(
            state=CheckState.SIGNATURE_MISMATCH,
            detail="; ".join(str(each) for each in differing),
            differences=differing,
        )
    if completion.outcome != "built":
        state = CheckState.NOT_NEEDED if completion.outcome == "skipped" else CheckState.UNSUPPORTED
        return Check(state=state, detail=completion.reason or "")
    if damage := _damage(completion, files, wrong_hashes):
        return damage
    if missing := tuple(unit for unit in units if unit not in set(completion.units)):
        return Check(state=CheckState.NOT_COVERED, detail="not built yet: " + ", ".join(missing), missing_units=missing)
    return Check(state=CheckState.VALID)


def _damage(completion: Completion, files: Mapping[str, int], wrong_hashes: Sequence[str]) -> Check | None:
    listed = completion.artifacts
    missing = tuple(path for path in listed if path not in files)
    changed = tuple(path for path, (size, _) in listed.items() if files.get(path, size) != size)
    wrong = tuple(path for path in wrong_hashes if path in listed)
    for state, paths in (
        (CheckState.FILES_MISSING, missing),
        (CheckState.FILES_CHANGED, changed),
        (CheckState.HASH_MISMATCH, wrong),
    ):
        if paths:
            detail = f"{len(paths)} of {len(listed)}, first {paths[0]}"
            return Check(state=state, detail=detail, damaged=tuple(sorted({*missing, *changed, *wrong})))
    return None


_BEST_FIRST = (
    CheckState.VALID,
    CheckState.NOT_NEEDED,
    CheckState.NOT_COVERED,
    CheckState.HASH_MISMATCH,
    CheckState.FILES_CHANGED,
    CheckState.FILES_MISSING,
    CheckState.UNSUPPORTED,
    CheckState.SIGNATURE_MISMATCH,
    CheckState.NEWER_FORMAT,
    CheckState.UNREADABLE,
)


def best(checks: Sequence[Check]) -> Check:
    """The check that stands nearest to valid; `no_completion` where there is none."""
    if not checks:
        return Check(state=CheckState.NO_COMPLETION)
    return min(checks, key=lambda check: (_BEST_FIRST.index(check.state), len(check.differences)))
