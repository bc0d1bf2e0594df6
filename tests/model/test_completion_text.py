"""A completion's file: what damage does to it, and what of an earlier version's is kept."""

import json
import random
import re
import time

import pytest

from rayprep.base.records import to_json
from rayprep.base.sealed import seal
from rayprep.model.completion import CheckState, Completion, cache_key, check_completion
from rayprep.model.completion_text import (
    CompletionDamaged,
    cleaned,
    completion_text,
    latest_of_each,
    parse_completion,
)
from rayprep.model.proof import Verification
from rayprep.model.tuning import TunedSize, Tuning
from tests.model.samples import MOMENT, completion, identity, signature

PROOF = Verification(verified_at=MOMENT, command=("serve", "--port", "1"), ready_s=1.0)
WHOLE = completion(
    identity=identity(server_flags=("a=1",), compiler_settings=("TORCHINDUCTOR_X=1",)),
    missed=("bs8",),
    verification=PROOF,
)
FORMAT_2 = completion_text(WHOLE).encode()
FORMAT_1 = (WHOLE.model_copy(update={"schema_version": "1"}).model_dump_json() + "\n").encode()
FILES = {path: size for path, (size, _) in WHOLE.artifacts.items()}
NAMES = re.compile(rb'"(\w+)":')


def read(data: bytes) -> Completion | None:
    try:
        return parse_completion(data)
    except CompletionDamaged as error:
        assert str(error)
        assert len(str(error).splitlines()) == 1
        return None


def is_valid(found: Completion | None) -> bool:
    """As it would be decided with all of its files there."""
    if found is None or found.key != WHOLE.key or found.identity != WHOLE.identity:
        return False
    return check_completion(found, signature(), FILES, WHOLE.units).valid


def test_what_is_written_is_read_in_both_formats() -> None:
    assert read(FORMAT_2) == read(FORMAT_1) == WHOLE
    assert is_valid(read(FORMAT_2))
    assert json.loads(FORMAT_2)["schema_version"] == "2"
    assert FORMAT_2.count(b"\n") == 1


def test_no_flipped_bit_anywhere_is_read_as_anything_else() -> None:
    for place in range(len(FORMAT_2)):
        for bit in range(8):
            flipped = bytearray(FORMAT_2)
            flipped[place] ^= 1 << bit
            found = read(bytes(flipped))
            assert found is None or found == WHOLE


@pytest.mark.parametrize("data", [FORMAT_1, FORMAT_2], ids=["format 1", "format 2"])
def test_no_flipped_bit_in_a_name_is_ever_valid(data: bytes) -> None:
    places = [place for name in NAMES.finditer(data) for place in range(*name.span(1))]
    assert len(places) > 500
    for place in places:
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            assert not is_valid(read(bytes(flipped))), (place, bit)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """With pieces lost, doubled, moved or replaced."""
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    piece = data[start:end]
    names = [name[0] for name in NAMES.finditer(data)]
    number = chance.choice([b"NaN", b"-Infinity", b"9" * 5000, b"1e999", b"[" * 200, b'{"a":' * 3000, b"null"])
    extra = chance.choice(names) + chance.choice([b"[]", b"{}", b'""', b"0", b"null"]) + b","
    damages = (
        lambda: data[:start],
        lambda: data[:start] + data[end:],
        lambda: data[:end] + piece + data[end:],
        lambda: data[:start] + chance.randbytes(chance.randint(1, 40)) + data[start:],
        lambda: data.replace(chance.choice(names), chance.choice(names), 1),
        lambda: re.sub(rb"(?<=:)[\d.]+", lambda _: number, data, count=chance.randint(1, 3)),
        lambda: data[:1] + extra + data[1:],
    )
    return chance.choice(damages)()


@pytest.mark.parametrize("data", [FORMAT_1, FORMAT_2], ids=["format 1", "format 2"])
def test_two_thousand_damages_are_told_in_one_line_each_and_in_no_time(data: bytes) -> None:
    chance, started = random.Random(15), time.monotonic()
    for _ in range(2000):
        damaged = mutated(data, chance)
        found = read(damaged)
        # Without a checksum, a value that is of the right kind cannot be known for damaged.
        assert found is None or data == FORMAT_1 or found == WHOLE
    assert time.monotonic() - started < 60


PLAIN = to_json(WHOLE)
ONE = FORMAT_1.decode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PLAIN, "no checksum"),
        (seal(ONE), "format 1 has no checksum"),
        (ONE.replace('"missed"', '"mizsed"'), "Extra inputs"),
        (ONE.replace('"missed":["bs8"],', ""), "it has no missed"),
        (ONE.replace('"part":""', '"part":"","port":""'), "Extra inputs"),
        (ONE.replace(',"part":""', ""), "it has no identity.part"),
        (ONE.replace(',"slices":1', ""), "it has no verification.slices"),
        (ONE.replace('"missed":', '"missed":[],"missed":'), "a key twice"),
        (ONE.replace('"tp":1', '"tp":1,"tp":1'), "a key twice"),
        (ONE.replace('"duration_s":10.0', '"duration_s":NaN'), "a finite number"),
        (seal(PLAIN.replace('"missed": [\n    "bs8"\n  ],', "")), "it has no missed"),
        (FORMAT_2.decode().replace("bs8", "bs9", 1), "not what its checksum says"),
        ("[" * 100_000, "recursion"),
        ('{"a":' * 100_000, "recursion"),
    ],
)
def test_it_is_told_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(CompletionDamaged, match=why):
        parse_completion(text.encode())


def test_a_key_that_is_not_known_is_left_out_where_the_checksum_is_right() -> None:
    document = json.loads(PLAIN)
    document["from_the_future"] = document["identity"]["too"] = [1]
    assert read(seal(json.dumps(document)).encode()) == WHOLE


def test_another_format_is_given_as_far_as_it_is_known() -> None:
    later = WHOLE.model_copy(update={"schema_version": "3"})
    for text in (completion_text(later), later.model_dump_json()):
        found = parse_completion(text.encode())
        assert check_completion(found, signature(), FILES).state is CheckState.NEWER_FORMAT


MISNAMED = TunedSize(batch_size=1, default_us=None, tuned_us=None, speedup=None, config={"num_warpr": 4})
KNOWN = MISNAMED.model_copy(update={"config": {"num_warps": 4}})


def tuned(size: TunedSize) -> Tuning:
    return Tuning(tuner_version=None, strategy="auto", grid="g", dtype="fp8", seed=None, sizes=(size,))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"moe_configs": {"triton_3_6_0/E=8.json": ""}}, "MoE configs"),
        ({"artifacts": {}}, "lists no file"),
        ({"tuning": tuned(MISNAMED)}, "num_warpr"),
    ],
)
def test_what_nothing_proves_is_taken_from_format_2_alone(changes: dict[str, object], why: str) -> None:
    made = WHOLE.model_copy(update=changes)
    assert parse_completion(completion_text(made).encode()) == made
    with pytest.raises(CompletionDamaged, match=why):
        parse_completion(made.model_copy(update={"schema_version": "1"}).model_dump_json().encode())


def test_what_its_files_and_known_names_prove_is_taken_from_format_1_too() -> None:
    for changes in ({"tuning": tuned(KNOWN)}, {"outcome": "skipped", "artifacts": {}}):
        made = WHOLE.model_copy(update=changes)
        assert read(made.model_copy(update={"schema_version": "1"}).model_dump_json().encode()) == made


SECRET = identity(
    server_flags=("a=1", "api_key=hunter2", "store=redis://:hunter2@h:1"),
    compiler_settings=("TORCHINDUCTOR_REDIS_URL=redis://:hunter2@h", "TORCHINDUCTOR_TOKEN=hunter2", "TRITON_X=1"),
)


def test_an_earlier_versions_secrets_are_left_out_and_the_key_fits_what_is_left() -> None:
    was = completion(
        identity=SECRET,
        server_command=("serve", "--api-key", "hunter2", "A=http://u:hunter2@h"),
        verification=PROOF.model_copy(update={"command": ("serve", "--x=http://u:hunter2@h")}),
        model_source="https://u:hunter2@h/m",
        reason="no http://u:hunter2@h",
    )
    clean = cleaned(was)
    assert "hunter" not in clean.model_dump_json()
    assert clean.identity.compiler_settings == ("TRITON_X=1",)
    assert clean.identity.server_flags == ("a=1", "api_key=***", "store=redis://***@h:1")
    assert clean.key == cache_key(clean.stage, clean.identity, clean.signature) != was.key
    assert (clean.artifacts, clean.units, clean.finished_at) == (was.artifacts, was.units, was.finished_at)
    assert cleaned(clean) is clean


def test_one_without_a_secret_stays_itself() -> None:
    assert cleaned(WHOLE) is WHOLE


def test_of_two_that_differed_by_a_secret_the_later_counts() -> None:
    first, second = completion(units=("a",)), completion(units=("b",), finished_at="2999-01-01T00:00:00Z")
    other = completion(identity=identity(tp=2))
    assert latest_of_each([first, other, second]) == latest_of_each([second, other, first]) == [second, other]
