"""The checksum inside a file, and what is damage."""

import json
import random

import pytest
from pydantic import Field

from rayprep.base.records import to_json
from rayprep.base.sealed import SealBroken, Sealed, Unsealed, digest, open_if_sealed, open_seal, seal


class Sample(Sealed):
    name: str = "x, y}"
    inner: dict[str, int] = Field(default_factory=lambda: {"a": 1})


TEXTS = {
    "one line": Sample().model_dump_json() + "\n",
    "no newline": Sample().model_dump_json(),
    "indented": to_json(Sample()),
    "of json": json.dumps({"a": [1, {"b": "}"}], "é": "ü"}),
    "one key": '{"a":1}\n',
    "a name of the same kind": json.dumps({"checksum": digest(b"other"), "a": 1}),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_sealed_text_is_plain_json_whose_last_key_is_its_checksum(text: str) -> None:
    sealed = seal(text)
    pairs = json.loads(sealed, object_pairs_hook=list)
    assert pairs[:-1] == json.loads(text, object_pairs_hook=list)
    assert pairs[-1] == ("checksum", digest(sealed.rpartition(",")[0].encode()))
    assert json.loads(open_seal(sealed.encode())) == json.loads(text)
    assert sealed.count("\n") == text.count("\n") + ("\n " in text), "one line stays one line"
    assert sealed.endswith("\n") == text.endswith("\n")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '"a"', '{"a":1} x', '{"a":1,}', "}"])
def test_what_is_no_object_with_a_key_is_not_sealed(text: str) -> None:
    with pytest.raises(ValueError, match="can be sealed"):
        seal(text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_flipped_bit_is_read_as_other_content(text: str) -> None:
    sealed = seal(text).encode()
    content = json.loads(open_seal(sealed))
    for place in range(len(sealed)):
        for bit in range(8):
            damaged = sealed[:place] + bytes([sealed[place] ^ 1 << bit]) + sealed[place + 1 :]
            try:
                opened = open_seal(damaged)
            except SealBroken:
                continue
            assert json.loads(opened) == content, "only the space around the checksum may differ"


def test_it_is_told_what_is_wrong() -> None:
    sealed = seal('{"a":1}').encode()
    with pytest.raises(SealBroken, match="not what its checksum says") as caught:
        open_seal(sealed.replace(b'"a"', b'"b"'))
    assert not isinstance(caught.value, Unsealed)
    for text in (b"", b'{"a":1}', sealed[:-1], sealed + b"x", sealed.replace(b"checksum", b"checksun"), b"\xff\xfe"):
        with pytest.raises(Unsealed):
            open_seal(text)
        assert open_if_sealed(text) == text
    with pytest.raises(SealBroken):
        open_if_sealed(sealed.replace(b'"a"', b'"b"'))
    assert open_if_sealed(sealed) == b'{"a":1}'


def test_nothing_breaks_the_reading_but_its_own_error() -> None:
    chance = random.Random(1)
    sealed = seal(TEXTS["indented"]).encode()
    for _ in range(2000):
        data = bytearray(sealed)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(data))
            data[place : place + chance.randint(0, 9)] = chance.randbytes(chance.randint(0, 9))
        try:
            opened = open_seal(bytes(data))
        except SealBroken:
            continue
        assert json.loads(opened) == json.loads(TEXTS["indented"])


def test_the_schema_has_the_checksum_and_the_model_has_no_such_field() -> None:
    assert Sample.model_json_schema()["properties"]["checksum"]["type"] == "string"
    assert "checksum" not in Sample.model_fields
