"""Odd hosts are named field by field, with what most hosts have."""

from rayprep.model.fleet.odd_hosts import odd_ones_out
from rayprep.model.signature import Signature
from rayprep.model.stages import StageName
from tests.model.samples import signature

DEEP_GEMM, INDUCTOR = StageName.DEEP_GEMM, StageName.INDUCTOR


def fleet(count: int, **odd: Signature) -> dict[str, Signature]:
    """`count` equal hosts, and those given."""
    return {**{f"gpu-{number:02}": signature() for number in range(count)}, **odd}


def lines(signatures: dict[str, Signature]) -> list[str]:
    return [str(each) for each in odd_ones_out(signatures, [DEEP_GEMM, INDUCTOR])]


def test_equal_hosts_have_nothing_to_say() -> None:
    assert lines(fleet(3)) == lines(fleet(1)) == lines({}) == []


def test_a_driver_is_named_though_it_binds_nothing() -> None:
    (found,) = odd_ones_out(fleet(31, odd=signature(driver_version="575.57")), [DEEP_GEMM])
    assert str(found) == "odd: driver 575.57 where 31 hosts have 580.65.06"
    assert found.binds == ()


def test_a_binding_field_comes_first_and_names_the_selected_stages_that_it_binds() -> None:
    odd = signature(driver_version="575.57", profiles_root="/other", sm_count=114, install_prefix="/usr/lib")
    found = odd_ones_out(fleet(2, odd=odd), [INDUCTOR, DEEP_GEMM])
    assert [(each.field, each.binds) for each in found] == [
        ("sm_count", (DEEP_GEMM,)),
        ("install_prefix", (INDUCTOR, DEEP_GEMM)),
        ("driver_version", ()),
        ("profiles_root", ()),
    ]


def test_what_a_host_does_not_have_is_none() -> None:
    assert lines({**fleet(2), "x": signature(nvcc=None)}) == ["x: nvcc none where 2 hosts have 13.0.88"]
    bare = {f"x{number}": signature(nvcc=None) for number in range(2)}
    assert lines({**fleet(1), **bare}) == ["gpu-00: nvcc 13.0.88 where 2 hosts have none"]


def test_hosts_that_are_odd_in_the_same_way_share_a_line() -> None:
    old = {f"old-{number}": signature(cxx="g++ 11") for number in range(5)}
    assert lines({**fleet(9), **old, "new": signature(cxx="g++ 14")}) == [
        "new: cxx g++ 14 where 9 hosts have g++ 13.2.0",
        "old-0, old-1, old-2 and 2 more: cxx g++ 11 where 9 hosts have g++ 13.2.0",
    ]


def test_of_two_the_second_is_the_odd_one() -> None:
    pair = {"b": signature(python="3.11"), "a": signature()}
    assert lines(pair) == ["b: python 3.11 where 1 host has 3.12"]


def test_what_is_asked_for_says_nothing_of_a_host() -> None:
    assert lines({**fleet(2), "x": signature(model_slug="other", tp_size=8)}) == []
