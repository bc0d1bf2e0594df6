"""What binds which stage, and that comparing and digesting never disagree."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.model.signature import BINDING, Signature, binding_digest, differences
from rayprep.model.stages import StageName
from tests.model.samples import signature

FIELDS = list(Signature.model_fields)
OTHER: dict[str, Any] = {
    field: 7 if isinstance(getattr(signature(), field), int) else "another" for field in FIELDS if field != "tp_size"
} | {"tp_size": 7}


def test_every_binding_field_is_a_field_and_has_a_reason() -> None:
    assert set(BINDING) == set(StageName)
    for reasons in BINDING.values():
        assert set(reasons) <= set(FIELDS)
        assert all(reason.strip() for reason in reasons.values())


@pytest.mark.parametrize(
    ("stage", "binds", "does_not"),
    [
        ("deep_gemm", "compute_capability sm_count nvcc deep_gemm_version install_prefix", "profiles_root cpu_isa"),
        ("moe_tune", "compute_capability device_name triton_version sglang_version profiles_root", "cpu_isa sm_count"),
        ("flashinfer", "compute_capability cpu_arch libc cxx nvcc install_prefix profiles_root", "triton_version"),
        ("inductor", "compute_capability cpu_arch cpu_isa libc python cxx torch_version", "profiles_root nvcc"),
    ],
)
def test_the_table_binds_what_the_facts_say(stage: str, binds: str, does_not: str) -> None:
    bound = set(BINDING[StageName(stage)])
    assert set(binds.split()) <= bound
    assert bound.isdisjoint(does_not.split())


@pytest.mark.parametrize("stage", StageName)
@pytest.mark.parametrize("field", ["driver_version", "gpu_count", "model_slug", "tp_size"])
def test_what_an_artifact_does_not_depend_on_binds_nothing(stage: StageName, field: str) -> None:
    assert differences(stage, signature(), signature(**{field: OTHER[field]})) == ()


@pytest.mark.parametrize("stage", StageName)
def test_another_format_binds_every_stage(stage: StageName) -> None:
    assert [each.field for each in differences(stage, signature(), signature(format_version="2"))] == ["format_version"]


CHANGES = st.dictionaries(st.sampled_from(FIELDS), st.booleans(), max_size=6)


@given(st.sampled_from(list(StageName)), CHANGES, CHANGES)
def test_differing_and_digesting_agree(stage: StageName, one: dict[str, bool], two: dict[str, bool]) -> None:
    then, now = (
        signature(**{field: OTHER[field] for field, changed in changes.items() if changed}) for changes in (one, two)
    )
    differing = differences(stage, then, now)
    assert (binding_digest(stage, then) == binding_digest(stage, now)) == (differing == ())
    unequal = {field for field in FIELDS if getattr(then, field) != getattr(now, field)}
    assert {each.field for each in differing} == unequal & set(BINDING[stage])


def test_a_missing_value_differs_from_every_word_for_it() -> None:
    for word in ("None", "null", ""):
        assert differences(StageName.DEEP_GEMM, signature(nvcc=None), signature(nvcc=word))
        assert binding_digest(StageName.DEEP_GEMM, signature(nvcc=None)) != binding_digest(
            StageName.DEEP_GEMM, signature(nvcc=word)
        )


def test_a_difference_names_the_field_both_values_and_the_reason() -> None:
    (found,) = differences(StageName.INDUCTOR, signature(python="3.11"), signature(python="3.12"))
    assert str(found) == "python was 3.11, is 3.12"
    assert found.why == BINDING[StageName.INDUCTOR]["python"]


def test_the_digest_is_the_same_in_every_process_and_release() -> None:
    """It is part of file names. Were it to move unnoticed, every cache in the field would be built again."""
    pinned = "b7e2a1f3b5926157663caf26d0cf1cdeb6e54da7395e10ce606a91ed1bee2896"
    assert binding_digest(StageName.DEEP_GEMM, signature()) == pinned
