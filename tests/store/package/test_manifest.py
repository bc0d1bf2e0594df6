"""What a package may hold, and what a host does with one."""

from collections.abc import Sequence

import pytest

from rayprep.base.errors import BadRequest, HostUnfit
from rayprep.base.records import Located, to_json
from rayprep.base.sealed import seal
from rayprep.model.completion import Completion
from rayprep.model.proof import Verification
from rayprep.model.stages import StageName
from rayprep.store.package.manifest import (
    Listed,
    PackageManifest,
    check_binding,
    check_manifest,
    manifest_text,
    parse_digest,
    parse_manifest,
)
from rayprep.store.package.placement import Here, Placement, place
from tests.model.samples import MOMENT, completion, identity, signature

MODULE = "flashinfer/.cache/flashinfer/0.6.14/90a/cached_ops/norm"
SO, NINJA, LOG = f"{MODULE}/norm.so", f"{MODULE}/build.ninja", f"{MODULE}/.ninja_log"
OURS: Listed = (3, "sha256:" + "a" * 64)
THEIRS: Listed = (3, "sha256:" + "b" * 64)


def flashinfer(slug: str = "qwen", listed: Listed = OURS, path: str = SO, **changes: object) -> Completion:
    whose = identity(model_slug=slug)
    return completion(StageName.FLASHINFER, **{"identity": whose, "artifacts": {path: listed}, **changes})


def manifest(
    *paths: str, completions: Sequence[Completion] | None = None, companions: Sequence[str] | None = None
) -> PackageManifest:
    """Of these files, of which those are companions that no completion lists."""
    packed = paths or sorted((SO, NINJA, LOG))
    chosen = (flashinfer(),) if completions is None else tuple(completions)
    unlisted = [path for path in packed if not any(path in each.artifacts for each in chosen)]
    return PackageManifest(
        rayprep_version="0.1.0",
        completions=chosen,
        companions=dict.fromkeys(unlisted if companions is None else companions, OURS),
        mtimes=dict.fromkeys(packed, 1),
    )


def test_what_pack_writes_is_taken() -> None:
    good = manifest()
    check_manifest(good)
    check_binding(good, signature(driver_version="999"))
    assert parse_manifest(manifest_text(good)) == good


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (manifest(completions=()), "no completion"),
        (manifest(completions=(flashinfer(), flashinfer())), "twice"),
        (manifest(completions=(flashinfer(key="../../etc/x-tp1-0123456789abcdef"),)), "not under the key"),
        (manifest(completions=(flashinfer("../x"),)), "not under the key"),
        (manifest(completions=(flashinfer(schema_version="3"),)), "format 3"),
        (manifest(NINJA), "and not both"),
        (manifest(SO, companions=[NINJA]), "and not both"),
        (manifest(NINJA, SO, companions=[]), "and not both"),
        (manifest(SO, completions=[flashinfer(listed=(-1, OURS[1]))]), "has -1 bytes"),
        (manifest(SO, completions=[flashinfer(listed=(2**63, OURS[1]))]), "has 9223372036854775808 bytes"),
        (
            manifest(NINJA, SO, completions=[flashinfer(artifacts={SO: OURS, NINJA: OURS})], companions=[NINJA]),
            "and a companion",
        ),
        (manifest("/etc/passwd", SO), "no plain path"),
        (manifest(f"{MODULE}/../x", SO), "no plain path"),
        (manifest(f"{MODULE}//build.ninja", SO), "no plain path"),
        (manifest(f"{MODULE}/a\0b", SO), "no plain path"),
        (manifest("build.ninja", SO), "in no cache"),
        (manifest(".rayprep/inductor/x.json", SO), "in no cache"),
        (manifest("flashinfer", SO), "in no cache"),
        (manifest(f"{MODULE}/a.so", SO), "listed by no completion"),
        (manifest(f"{MODULE}2/build.ninja", SO), "listed by no completion"),
        (manifest(f"{MODULE}/x.lock", SO), "listed by no completion"),
        (manifest(SO, NINJA), "not in order"),
        (manifest(completions=(flashinfer(), flashinfer("llama", THEIRS))), "two completions list"),
        (manifest(SO, completions=(flashinfer(), flashinfer("llama", path="etc/passwd"))), "in no cache"),
        (
            manifest(SO, f"{SO}/x", completions=(flashinfer(artifacts={SO: OURS, f"{SO}/x": OURS}),)),
            "a file and a folder at once",
        ),
    ],
)
def test_what_no_package_may_hold(bad: PackageManifest, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        check_manifest(bad)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"schema_version": "1"}'])
def test_what_is_no_manifest(text: bytes) -> None:
    with pytest.raises(BadRequest, match="manifest cannot be read"):
        parse_manifest(text)


def test_the_format_without_a_checksum_is_taken_to_the_letter() -> None:
    """So that no bit that changed in a name is passed over."""
    good = manifest().model_copy(update={"schema_version": "1"})
    text = to_json(good).encode()
    assert parse_manifest(text) == good
    for damage in (
        text.replace(b'"outcome"', b'"outcomd"'),
        text.replace(b'"companions"', b'"companionr"'),
        seal(text.decode()).encode(),
    ):
        with pytest.raises(BadRequest, match="manifest cannot be read"):
            parse_manifest(damage)


def test_a_bit_that_changed_in_a_sealed_manifest_is_found() -> None:
    text = manifest_text(manifest())
    for at in range(0, len(text), 7):
        damaged = bytearray(text)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(BadRequest):
            parse_manifest(bytes(damaged))
    with pytest.raises(BadRequest, match="without a checksum"):
        parse_manifest(to_json(manifest()).encode())


def test_what_no_receiver_takes_is_not_packed() -> None:
    many = manifest(completions=[flashinfer(units=tuple(map(str, range(500_000))))])
    with pytest.raises(BadRequest, match="too many files"):
        manifest_text(many)


DIGITS = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [DIGITS, DIGITS.upper(), f"sha256:{DIGITS}", f"SHA256:{DIGITS.upper()}"])
def test_a_digest_has_one_form(text: str) -> None:
    assert parse_digest(text) == f"sha256:{DIGITS}"


@pytest.mark.parametrize(
    "text", ["", "sha256:", DIGITS[1:], DIGITS + "0", "g" + DIGITS[1:], f"md5:{DIGITS}", f" {DIGITS}", "٣" * 64]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(BadRequest, match="no SHA-256 digest"):
        parse_digest(text)


@pytest.mark.parametrize(
    "paths", [(f"{MODULE}/{'x' * 1024}", SO), (SO, f"{SO}-x", f"{SO}/x")], ids=["long", "a file between"]
)
def test_a_path_that_no_cache_has(paths: tuple[str, ...]) -> None:
    bad = manifest(*sorted(paths), completions=[flashinfer(artifacts=dict.fromkeys(paths, OURS))])
    with pytest.raises(BadRequest, match=r"longer than|a file and a folder"):
        check_manifest(bad)


def test_another_format_is_said_whatever_else_it_holds() -> None:
    with pytest.raises(BadRequest, match="format 3, this rayprep reads 1 and 2"):
        parse_manifest(b'{"schema_version": "3", "shards": []}')


@pytest.mark.parametrize(
    ("field", "value"), [("profiles_root", "/other"), ("install_prefix", "/other"), ("nvcc", "12.0"), ("libc", "musl")]
)
def test_another_kind_of_host_is_named_with_the_field_and_both_values(field: str, value: str) -> None:
    with pytest.raises(HostUnfit) as raised:
        check_binding(manifest(), signature(**{field: value}))
    assert f"flashinfer: {field} was {getattr(signature(), field)}, is {value}" in raised.value.line
    assert len(raised.value.line.splitlines()) == 1


def placed(
    *local: Completion,
    artifacts: dict[str, Listed] | None = None,
    companions: Sequence[str] = (),
    valid: Sequence[Completion] = (),
    package: PackageManifest | None = None,
) -> Placement:
    here = Here(
        signature=signature(),
        artifacts=artifacts or {},
        companions=companions,
        completions=local,
        valid={(each.stage, each.key) for each in valid},
    )
    return place(package or manifest(), here)


ENTRY = ("flashinfer", MODULE.removeprefix("flashinfer/"))


def test_an_empty_root_takes_whole_entries() -> None:
    found = placed()
    assert found.whole == {ENTRY: {SO, NINJA, LOG}}
    assert (found.completions, found.kept, found.dropped, found.single) == ((flashinfer(),), (), (), {})


def test_a_completion_comes_without_what_another_hosts_servers_have_left() -> None:
    proof = Verification(verified_at=MOMENT, command=("python",), ready_s=1.0)
    theirs = flashinfer(verification=proof, verify_log=Located(container_path="/t/serve.log", host_path="/t/serve.log"))
    assert placed(package=manifest(completions=(theirs,))).completions == (flashinfer(),)


def test_an_entry_that_is_there_is_not_touched_though_its_companions_differ() -> None:
    found = placed(artifacts={SO: OURS}, companions=(NINJA, LOG))
    assert found.needed == set()
    assert found.completions == (flashinfer(),)


def test_an_entry_with_another_artifact_or_without_a_companion_comes_in_whole() -> None:
    assert placed(artifacts={SO: THEIRS}, companions=(NINJA, LOG)).whole == {ENTRY: {SO, NINJA, LOG}}
    assert placed(artifacts={SO: OURS}, companions=(NINJA,)).whole == {ENTRY: {SO, NINJA, LOG}}


def test_a_completion_that_is_valid_here_stays_and_nothing_of_it_comes_in() -> None:
    mine = flashinfer(run_id="mine", listed=THEIRS)
    found = placed(mine, artifacts={SO: THEIRS}, valid=(mine,))
    assert (found.completions, found.kept, found.needed) == ((), (flashinfer(),), frozenset())


def test_one_of_the_same_key_that_does_not_hold_is_replaced() -> None:
    found = placed(flashinfer(listed=THEIRS), artifacts={SO: THEIRS})
    assert (found.completions, found.dropped) == ((flashinfer(),), ())
    assert found.whole == {ENTRY: {SO, NINJA, LOG}}


def test_anothers_build_of_the_same_file_stays_and_is_listed() -> None:
    other = flashinfer("llama", THEIRS)
    found = placed(other, artifacts={SO: THEIRS}, companions=(NINJA, LOG))
    assert (found.needed, found.dropped) == (frozenset(), ())
    assert found.completions == (flashinfer(listed=THEIRS),)


def test_into_an_entry_that_another_lists_only_what_is_missing_comes() -> None:
    other = flashinfer("llama", path=f"{MODULE}/other.so")
    found = placed(other, companions=(NINJA,))
    assert found.whole == {}
    assert found.single == {ENTRY: {SO, LOG}}
    assert found.dropped == ()


@pytest.mark.parametrize("there", [{}, {SO: OURS}, {SO: (3, "sha256:" + "c" * 64)}])
def test_another_completion_whose_file_is_damaged_goes(there: dict[str, Listed]) -> None:
    other = flashinfer("llama", THEIRS)
    found = placed(other, artifacts=there, companions=(NINJA, LOG))
    assert found.dropped == (other,)
    assert found.needed == (set() if there.get(SO) == OURS else {SO, NINJA, LOG})


def test_a_file_of_another_kind_of_host_is_not_replaced() -> None:
    other = flashinfer("llama", THEIRS, signature=signature(cpu_arch="x86_64"))
    with pytest.raises(HostUnfit, match=f"in use by completion {other.key} of another kind of host: cpu_arch"):
        placed(other, artifacts={SO: THEIRS})
