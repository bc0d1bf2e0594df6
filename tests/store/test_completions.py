"""Completion files: whatever is wrong with one, reading goes on, and it never counts."""

import json
import os
import tempfile
import time
from pathlib import Path

import pytest

from rayprep.base.records import to_json
from rayprep.base.sealed import seal
from rayprep.host.layout import Layout
from rayprep.host.locks import LOOK_S, acquire
from rayprep.model.completion import Completion, cache_key
from rayprep.model.completion_text import completion_text
from rayprep.model.stages import StageName
from rayprep.store.completions import of_identity, read_completions, rewrite_outdated, write_completion
from tests.host.other_user import NOBODY, as_user
from tests.model.samples import DIGEST, completion, identity, signature
from tests.needs import needs_root
from tests.store.caches import layout_in

INDUCTOR = StageName.INDUCTOR


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path)


def of(slug: str, tp: int = 1, **changes: object) -> Completion:
    return completion(identity=identity(model_slug=slug, tp=tp), **changes)


def put(layout: Layout, text: str | bytes, name: str | None = None) -> Path:
    path = layout.completion(INDUCTOR, name or completion().key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_is_written_is_read(layout: Layout) -> None:
    path = write_completion(layout, completion())
    assert path == layout.profiles / ".rayprep" / "inductor" / f"{completion().key}.json"
    assert read_completions(layout, INDUCTOR) == ([completion()], [])
    assert read_completions(layout, StageName.FLASHINFER) == ([], [])


def test_writing_again_replaces_and_leaves_nothing_else(layout: Layout) -> None:
    write_completion(layout, completion())
    path = write_completion(layout, completion(run_id="run-2"))
    assert [each.run_id for each in read_completions(layout, INDUCTOR)[0]] == ["run-2"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_two_layouts_and_two_hosts_in_one_root_never_overwrite_each_other(layout: Layout) -> None:
    for tp in (1, 2):
        for capability in ("sm_90", "sm_100"):
            made_on = signature(compute_capability=capability)
            write_completion(layout, completion(identity=identity(tp=tp), signature=made_on))
    assert len(read_completions(layout, INDUCTOR)[0]) == 4


def test_only_those_of_a_slug_and_a_layout_are_read_where_asked(layout: Layout) -> None:
    for slug in ("qwen", "qwen-tp2", "qwen-tp2-0123456789abcdef"):
        for tp in (1, 2):
            write_completion(layout, of(slug, tp))
    for slug in ("qwen", "qwen-tp2", "qwen-tp2-0123456789abcdef"):
        (found,) = read_completions(layout, INDUCTOR, slug, 2)[0]
        assert (found.identity.model_slug, found.identity.tp) == (slug, 2)
        assert len(read_completions(layout, INDUCTOR, slug)[0]) == 2
    assert len(read_completions(layout, INDUCTOR, tp=1)[0]) == 3
    assert read_completions(layout, INDUCTOR, "qwe", 1) == ([], [])


PLAIN = to_json(completion())
GOOD = seal(PLAIN)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD[: len(GOOD) // 2].encode(),
        GOOD[:-3].encode(),
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        GOOD.replace('"tp": 1', '"tp": 2').encode(),
        PLAIN.encode(),
        *(
            seal(PLAIN.replace(was, now)).encode()
            for was, now in (
                ('"tp": 1', '"tp": "one"'),
                ("2025-10-09T01:12:00Z", "yesterday"),
                ('"inductor"', '"surprise"'),
                ("torchinductor/ab/cab.so", "../../etc/passwd"),
                ("torchinductor/ab/cab.so", "/etc/passwd"),
                ("torchinductor/ab/cab.so", "torchinductor//etc/passwd"),
                ('"artifacts"', '"aruifacts"'),
                ('"missed": [],', ""),
                ('"part"', '"port"'),
                ('"schema_version": "2"', '"schema_version": "1"'),
            )
        ),
    ],
)
def test_a_file_that_says_nothing_is_told_with_its_path_and_one_line(layout: Layout, content: bytes) -> None:
    path = put(layout, content)
    good, (bad,) = read_completions(layout, INDUCTOR)
    assert good == []
    assert bad.path == str(path)
    assert bad.why
    assert len(bad.why.splitlines()) == 1


def test_one_bad_file_does_not_hide_the_good_ones(layout: Layout) -> None:
    write_completion(layout, of("good"))
    put(layout, b"{")
    good, bad = read_completions(layout, INDUCTOR)
    assert (len(good), len(bad)) == (1, 1)


def test_a_folder_in_place_of_a_file_is_told(layout: Layout) -> None:
    layout.completion(INDUCTOR, completion().key).mkdir(parents=True)
    good, (bad,) = read_completions(layout, INDUCTOR)
    assert (good, bad.why) == ([], "[Errno 21] Is a directory: " + repr(bad.path))


def test_fields_of_a_newer_rayprep_are_ignored_at_every_depth(layout: Layout) -> None:
    document = json.loads(GOOD)
    for place in (document, document["identity"], document["signature"]):
        place["from_the_future"] = {"a": [1]}
    document.pop("checksum")
    put(layout, seal(json.dumps(document)))
    assert read_completions(layout, INDUCTOR) == ([completion()], [])


def test_a_newer_format_is_read_as_far_as_it_goes_for_the_check_to_refuse(layout: Layout) -> None:
    for write in (seal, str):
        put(layout, write(to_json(completion(schema_version="3"))))
        (found,) = read_completions(layout, INDUCTOR)[0]
        assert found.schema_version == "3"


def test_a_copy_under_another_name_does_not_stand_in(layout: Layout) -> None:
    other = cache_key(INDUCTOR, identity(tp=8), signature())
    put(layout, GOOD, other)
    put(layout, completion_text(completion(StageName.FLASHINFER, key=completion().key)))
    assert read_completions(layout, INDUCTOR) == ([], [])


def test_names_that_are_no_keys_are_read_by_nobody_who_asks_for_a_slug(layout: Layout) -> None:
    put(layout, b"{", "notes")
    assert read_completions(layout, INDUCTOR, "tiny-dense", 1) == ([], [])
    assert len(read_completions(layout, INDUCTOR)[1]) == 1


def test_a_temporary_file_of_a_killed_writer_is_not_looked_at(layout: Layout) -> None:
    path = write_completion(layout, completion())
    (path.parent / f".{path.name}.a1b2c3.tmp").write_text("{", encoding="utf-8")
    assert read_completions(layout, INDUCTOR) == ([completion()], [])


def test_a_name_that_is_not_utf8_can_be_told(layout: Layout) -> None:
    put(layout, b"{", "x").rename(layout.completions(INDUCTOR) / os.fsdecode(b"x\xff.json"))
    (bad,) = read_completions(layout, INDUCTOR)[1]
    assert bad.path.endswith("x\\xff.json")
    to_json(bad)


def test_only_the_same_model_layout_and_flags_count_as_the_same() -> None:
    each = [completion(), completion(identity=identity(server_flags=("a=1",))), of("other"), of("tiny-dense", 2)]
    assert of_identity(each, identity()) == [completion()]
    assert of_identity(each, identity(config_digest=DIGEST + "0")) == []


SECRET = identity(compiler_settings=("TORCHINDUCTOR_REDIS_URL=redis://:hunter2@cache", "TRITON_X=1"))


def put_secret(layout: Layout, **changes: object) -> Path:
    """A completion of format 1, as an earlier version wrote it."""
    made = completion(identity=SECRET, schema_version="1", **changes)
    return put(layout, made.model_dump_json() + "\n", made.key)


def files_of(layout: Layout) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in layout.completions(INDUCTOR).iterdir()}


def test_a_secret_of_an_earlier_version_goes_when_its_completion_is_read(layout: Layout) -> None:
    put_secret(layout)
    (found,), bad = read_completions(layout, INDUCTOR)
    assert (found.identity.compiler_settings, bad) == (("TRITON_X=1",), [])
    ((name, content),) = files_of(layout).items()
    assert name == f"{found.key}.json"
    assert content == completion_text(found).encode()
    assert read_completions(layout, INDUCTOR) == ([found], [])


def test_a_look_at_a_secret_neither_waits_for_the_store_nor_fails(layout: Layout) -> None:
    path = put_secret(layout)
    with acquire([layout.store_lock], "run-1", 0, lambda *_: None, lambda: False):
        started = time.monotonic()
        (found,), _ = read_completions(layout, INDUCTOR)
        assert time.monotonic() - started < LOOK_S
        assert "hunter" not in found.model_dump_json()
        assert path.exists(), "whoever holds the store may be about to write there"
    read_completions(layout, INDUCTOR)
    assert not path.exists()


def test_whoever_holds_the_store_replaces_what_an_earlier_version_wrote(layout: Layout) -> None:
    put_secret(layout)
    old = put(layout, completion(schema_version="1").model_dump_json(), completion().key)
    damaged = put(layout, b"{", f"{completion().key[:-1]}x")
    future = completion(identity=identity(tp=2), schema_version="3")
    newer = put(layout, seal(future.model_dump_json()), future.key)
    before = damaged.read_bytes(), newer.read_bytes()
    with acquire([layout.store_lock], "run-1", 0, lambda *_: None, lambda: False):
        rewrite_outdated(layout)
    assert (damaged.read_bytes(), newer.read_bytes()) == before
    assert old.read_bytes() == completion_text(completion()).encode()
    assert b"hunter" not in b"".join(files_of(layout).values())
    assert len(files_of(layout)) == 4


def test_the_later_of_two_that_differed_by_a_password_stays(layout: Layout) -> None:
    late = "2999-01-01T00:00:00Z"
    for password, finished in (("hunter1", late), ("hunter2", "2020-01-01T00:00:00Z")):
        settings = (f"TORCHINDUCTOR_REDIS_URL=redis://:{password}@cache",)
        made = completion(identity=identity(compiler_settings=settings), finished_at=finished)
        put(layout, seal(made.model_dump_json()), made.key)
    for _ in range(2):
        (found,), _ = read_completions(layout, INDUCTOR)
        assert found.finished_at == late
    assert list(files_of(layout)) == [f"{found.key}.json"]


def test_what_is_written_has_no_secret_whatever_it_was_given(layout: Layout) -> None:
    path = write_completion(layout, completion(identity=SECRET))
    assert b"hunter" not in path.read_bytes()
    assert len(read_completions(layout, INDUCTOR)[0]) == 1


@needs_root()
def test_a_root_that_cannot_be_written_is_read_without_its_secrets() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        layout = layout_in(Path(name))
        path = put_secret(layout)
        before = sorted(Path(name).rglob("*"))
        (found,), bad = as_user(NOBODY, lambda: read_completions(layout, INDUCTOR))
        assert ("hunter" in str(found), bad) == (False, [])
        assert sorted(Path(name).rglob("*")) == before
        assert path.exists()
