"""Whether a completion holds: the order of the reasons, the key, and paths that lead elsewhere."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayprep.base.records import to_json
from rayprep.model.completion import Check, CheckState, Completion, best, cache_key, check_completion
from rayprep.model.signature import BINDING
from rayprep.model.stages import StageName
from tests.model.samples import DIGEST, completion, identity, signature

FILES = {"torchinductor/ab/cab.so": 3, "torchinductor/fxgraph/zz/key/graph": 5, "triton/unrelated": 9}
SO, GRAPH = "torchinductor/ab/cab.so", "torchinductor/fxgraph/zz/key/graph"


def state(files: dict[str, int] = FILES, units: tuple[str, ...] = (), **changes: object) -> CheckState:
    return check_completion(completion(**changes), signature(), files, units).state


def test_a_completion_that_holds_is_valid() -> None:
    check = check_completion(completion(), signature(), FILES, ("bs8", "bs1"))
    assert check == Check(state=CheckState.VALID)
    assert check.valid
    assert check.state.value == "valid_signature", "the contract's reason for a noop"


def test_a_format_that_is_not_ours_is_never_guessed_at() -> None:
    assert state(schema_version="3") is CheckState.NEWER_FORMAT
    assert state(schema_version="0", outcome="skipped") is CheckState.NEWER_FORMAT


@pytest.mark.parametrize("field", sorted(BINDING[StageName.INDUCTOR]))
def test_each_binding_field_that_differs_is_named(field: str) -> None:
    other = 7 if field == "sm_count" else "another"
    check = check_completion(completion(), signature(**{field: other}), FILES)
    assert check.state is CheckState.SIGNATURE_MISMATCH
    assert [each.field for each in check.differences] == [field]
    assert check.detail == f"{field} was {getattr(signature(), field)}, is {other}"


def test_a_difference_that_does_not_bind_is_no_reason() -> None:
    check = check_completion(completion(), signature(driver_version="999", profiles_root="/elsewhere"), FILES)
    assert check.valid


def test_each_kind_of_damage_is_told_apart_and_lists_its_files() -> None:
    missing = check_completion(completion(), signature(), {SO: 3})
    assert (missing.state, missing.damaged) == (CheckState.FILES_MISSING, (GRAPH,))
    changed = check_completion(completion(), signature(), {**FILES, SO: 4})
    assert (changed.state, changed.damaged) == (CheckState.FILES_CHANGED, (SO,))
    wrong = check_completion(completion(), signature(), FILES, wrong_hashes=(GRAPH, "not/listed"))
    assert (wrong.state, wrong.damaged) == (CheckState.HASH_MISMATCH, (GRAPH,))


def test_damage_of_several_kinds_lists_all_files() -> None:
    check = check_completion(completion(), signature(), {SO: 4}, wrong_hashes=(SO,))
    assert (check.state, check.damaged) == (CheckState.FILES_MISSING, (SO, GRAPH))
    assert check.detail == f"1 of 2, first {GRAPH}"


def test_what_is_not_covered_is_listed_in_the_order_asked() -> None:
    check = check_completion(completion(), signature(), FILES, ("bs64", "bs1", "bs32"))
    assert (check.state, check.missing_units) == (CheckState.NOT_COVERED, ("bs64", "bs32"))


def test_the_worst_reason_comes_first() -> None:
    asked = ("bs64",)
    assert state({}, asked, schema_version="3", signature=signature(python="2.7")) is CheckState.NEWER_FORMAT
    assert state({}, asked, signature=signature(python="2.7")) is CheckState.SIGNATURE_MISMATCH
    assert state({}, asked) is CheckState.FILES_MISSING
    assert state(FILES, asked) is CheckState.NOT_COVERED


def test_a_skip_that_was_right_needs_no_files_but_the_same_host() -> None:
    skipped = completion(outcome="skipped", reason="no_gpu", artifacts={}, units=())
    check = check_completion(skipped, signature(), {})
    assert (check.state, check.detail, check.valid) == (CheckState.NOT_NEEDED, "no_gpu", True)
    assert not check_completion(skipped, signature(compute_capability=None), {}).valid


def test_what_does_not_work_is_never_valid() -> None:
    failed = completion(outcome="unsupported", reason="no server starts", artifacts={})
    check = check_completion(failed, signature(), {}, failed.units)
    assert (check.state, check.detail, check.valid) == (CheckState.UNSUPPORTED, "no server starts", False)


def test_the_best_check_stands_nearest_to_valid() -> None:
    two = check_completion(completion(), signature(python="2.7", cxx="cc"), FILES)
    one = check_completion(completion(), signature(python="2.7"), FILES)
    missing = check_completion(completion(), signature(), {})
    valid = check_completion(completion(), signature(), FILES)
    assert best([two, one]) is one
    assert best([two, missing, one]) is missing
    assert best([missing, valid, one]) is valid
    assert best([]).state is CheckState.NO_COMPLETION


@given(st.lists(st.sampled_from([each for each in CheckState if each not in ("no_completion", "in_progress")])))
def test_the_best_of_any_is_one_of_them_and_valid_if_any_is(states: list[CheckState]) -> None:
    checks = [Check(state=each) for each in states if each is not CheckState.IN_PROGRESS]
    if checks:
        assert best(checks) in checks
        assert best(checks).valid == any(each.valid for each in checks)


def test_a_key_is_a_file_name_with_slug_and_layout() -> None:
    assert re.fullmatch(r"tiny-dense-tp2-[0-9a-f]{16}", cache_key(StageName.INDUCTOR, identity(tp=2), signature()))


KEYED = {
    "slug": (identity(model_slug="other"), signature()),
    "config": (identity(config_digest="sha256:1"), signature()),
    "layout": (identity(tp=2), signature()),
    "flags": (identity(server_flags=("attention_backend=fa3",)), signature()),
    "host": (identity(), signature(compute_capability="sm_100")),
}


def test_whatever_makes_another_artifact_makes_another_key() -> None:
    keys = {cache_key(StageName.INDUCTOR, identity(), signature())}
    keys |= {cache_key(StageName.INDUCTOR, *whose) for whose in KEYED.values()}
    assert len(keys) == len(KEYED) + 1


def test_whatever_does_not_bind_keeps_the_key() -> None:
    same = signature(driver_version="999", model_slug="x", tp_size=8, profiles_root="/other")
    assert cache_key(StageName.INDUCTOR, identity(), same) == cache_key(StageName.INDUCTOR, identity(), signature())


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../etc/passwd",
        "torchinductor/../../etc/passwd",
        "torchinductor/..",
        "torchinductor//etc/passwd",
        "triton//x",
        "./triton/x",
        "triton/./x",
        "triton/",
        "",
        ".",
        "..",
    ],
)
def test_a_path_that_is_not_plainly_below_the_root_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="no plain path"):
        completion(artifacts={path: (1, DIGEST)})


@pytest.mark.parametrize("path", ["triton/a..b/..c", "triton/...", ".rayprep/x", "triton/ spaced out "])
def test_a_name_with_dots_is_a_name(path: str) -> None:
    assert path in completion(artifacts={path: (1, DIGEST)}).artifacts


def test_a_completion_survives_being_written_and_read() -> None:
    assert Completion.model_validate_json(to_json(completion())) == completion()
