"""Hosts by kind and by store: who builds, who ships, who receives."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.model.fleet.grouping import Grouping, HostFacts, StageShare, StageStanding, Standing, group_hosts
from rayprep.model.stages import StageName
from tests.model.samples import signature

DEEP_GEMM, FLASHINFER = StageName.DEEP_GEMM, StageName.FLASHINFER
VALID, MISSING, UNABLE = Standing
H200: dict[str, Any] = {"device_name": "NVIDIA H200", "cpu_arch": "x86_64", "sm_count": 120}


def host(name: str, standing: Standing | None = MISSING, store: str = "", **changes: object) -> HostFacts:
    """With a store of its own unless one is named; the stage is DeepGEMM's, None for a host that skips it."""
    stages = {} if standing is None else {DEEP_GEMM: StageStanding(key=f"key-of-{name}", standing=standing)}
    return HostFacts(host=name, store=store or f"store-{name}", signature=signature(**changes), stages=stages)


def grouped(*hosts: HostFacts) -> Grouping:
    return group_hosts(hosts, [DEEP_GEMM])


def members(found: Grouping) -> list[tuple[str, ...]]:
    return [group.hosts for group in found.groups]


def only_share(found: Grouping) -> StageShare:
    ((share,),) = (group.shares for group in found.groups)
    return share


def test_one_host_is_a_fleet_of_one() -> None:
    found = grouped(host("a"))
    assert only_share(found) == StageShare(stage=DEEP_GEMM, key="key-of-a", builders=("a",))
    assert only_share(found).publisher == "a"
    assert found.uniform


def test_two_kinds_and_an_odd_host() -> None:
    gh200 = [host(f"gh-{number}") for number in range(3)]
    h200 = [host(f"h-{number}", **H200) for number in range(2)]
    found = grouped(host("odd", nvcc="12.9.86"), *h200, *gh200)
    assert members(found) == [("gh-0", "gh-1", "gh-2"), ("h-0", "h-1"), ("odd",)]
    assert [group.name for group in found.groups] == ["group-1", "group-2", "group-3"]
    assert len({group.digests[DEEP_GEMM] for group in found.groups}) == 3
    assert [group.shares[0].publisher for group in found.groups] == ["gh-0", "h-0", "odd"]
    assert [group.shares[0].receivers for group in found.groups] == [("gh-1", "gh-2"), ("h-1",), ()]
    assert not found.uniform
    assert "odd: nvcc 12.9.86 where 5 hosts have 13.0.88" in map(str, found.odd)


def test_what_binds_no_selected_stage_splits_no_group_and_is_told() -> None:
    found = grouped(host("a"), host("b"), host("c", driver_version="575.57", cpu_isa="sve"))
    assert members(found) == [("a", "b", "c")]
    assert [(each.field, each.binds) for each in found.odd] == [("cpu_isa", ()), ("driver_version", ())]


def test_a_field_that_binds_one_of_the_selected_stages_splits() -> None:
    hosts = [host("a"), host("b", profiles_root="/elsewhere")]
    assert len(group_hosts(hosts, [DEEP_GEMM]).groups) == 1
    assert len(group_hosts(hosts, [DEEP_GEMM, FLASHINFER]).groups) == 2


def test_a_shared_store_is_built_once_and_shipped_to_nobody_in_it() -> None:
    found = grouped(host("a"), *(host(name, store="nfs") for name in ("d", "c", "b")))
    assert found.groups[0].stores == {"nfs": ("b", "c", "d"), "store-a": ("a",)}
    # It is built where most hosts have it at once, and the others of that store can help.
    share = only_share(found)
    assert (share.publisher, share.builders, share.receivers) == ("b", ("b", "c", "d", "a"), ("a",))
    alone = only_share(grouped(*(host(name, store="nfs") for name in "abc")))
    assert (alone.publisher, alone.receivers) == ("a", ())


def test_a_shared_store_receives_once() -> None:
    share = only_share(grouped(host("a", VALID), *(host(name, store="nfs") for name in ("b", "c", "d"))))
    assert (share.sources, share.receivers) == (("a",), ("b",))


def test_a_store_of_two_kinds_is_built_once_for_each() -> None:
    found = grouped(host("a", store="nfs"), host("b", store="nfs", **H200))
    assert [group.shares[0].publisher for group in found.groups] == ["a", "b"]


def test_whoever_has_it_is_the_source_and_nobody_builds() -> None:
    share = only_share(grouped(host("a"), host("b", VALID), host("c", UNABLE), host("d", VALID)))
    assert share == StageShare(stage=DEEP_GEMM, key="key-of-b", sources=("b", "d"), receivers=("a", "c"))
    assert share.publisher is None


def test_a_fleet_that_has_all_of_it_has_nothing_to_do() -> None:
    share = only_share(grouped(host("a", VALID), host("b", VALID)))
    assert (share.builders, share.receivers, share.stuck) == ((), (), ())


def test_a_host_without_nvcc_receives_and_does_not_build() -> None:
    found = grouped(host("a", UNABLE, nvcc=None), host("b"), host("c"))
    assert members(found) == [("a", "b", "c")]
    share = only_share(found)
    assert (share.key, share.builders, share.receivers) == ("key-of-b", ("b", "c"), ("a", "c"))


def test_a_host_without_nvcc_builds_nothing_that_others_could_not_use() -> None:
    assert only_share(grouped(host("a", nvcc=None), host("b"))).builders == ("b",)
    assert only_share(grouped(host("a", nvcc=None), host("b", nvcc=None))).builders == ("a", "b")


def test_a_host_without_nvcc_goes_with_the_largest_group_that_it_fits() -> None:
    old = [host(f"old-{number}", nvcc="12.9.86") for number in range(2)]
    found = grouped(host("a"), host("bare", UNABLE, nvcc=None), host("misfit", UNABLE, nvcc=None, sm_count=78), *old)
    assert members(found) == [("bare", "old-0", "old-1"), ("a",), ("misfit",)]


def test_a_group_in_which_nobody_can_build_is_stuck_by_itself() -> None:
    found = grouped(host("a"), host("y", UNABLE, **H200), host("x", UNABLE, **H200))
    first, second = (group.shares[0] for group in found.groups)
    assert (first.publisher, first.stuck, first.receivers) == (None, ("x", "y"), ())
    assert (second.publisher, second.stuck) == ("a", ())


def test_hosts_that_skip_a_stage_have_no_part_in_it() -> None:
    assert only_share(grouped(host("a", None), host("b"), host("c", None))).receivers == ()
    assert [group.shares for group in grouped(host("a", None)).groups] == [()]


def test_each_stage_is_dealt_out_by_itself() -> None:
    def facts(name: str, **standings: Standing) -> HostFacts:
        stages = {StageName(stage): StageStanding(key="k", standing=standing) for stage, standing in standings.items()}
        return host(name).model_copy(update={"stages": stages})

    hosts = [facts("a", deep_gemm=MISSING, flashinfer=VALID), facts("b", deep_gemm=MISSING, flashinfer=MISSING)]
    ((deep_gemm, flashinfer),) = (group.shares for group in group_hosts(hosts, [DEEP_GEMM, FLASHINFER]).groups)
    assert (deep_gemm.publisher, deep_gemm.receivers) == ("a", ("b",))
    assert (flashinfer.sources, flashinfer.receivers) == (("a",), ("b",))


def test_two_hosts_of_one_name_are_refused() -> None:
    with pytest.raises(BadRequest, match="both called a"):
        grouped(host("a"), host("b"), host("a", **H200))


def test_a_rollout_begins_with_those_who_give_of_every_kind() -> None:
    gh200 = [host("a"), host("b"), host("c", store="nfs"), host("d", store="nfs")]
    h200 = [host("x", **H200), host("y", VALID, **H200)]
    assert grouped(*gh200, *h200).order == ("c", "y", "a", "x", "b", "d")


@st.composite
def fleets(draw: st.DrawFn) -> list[HostFacts]:
    def one(name: str) -> HostFacts:
        nvcc = draw(st.sampled_from([None, "13.0.88", "12.9.86"]))
        standing = draw(st.sampled_from([None, VALID, UNABLE if nvcc is None else MISSING]))
        return host(name, standing, draw(st.sampled_from(["", "nfs-1", "nfs-2"])), nvcc=nvcc)

    return [one(name) for name in draw(st.permutations("abcdef"))]


@given(fleets())
def test_each_host_has_one_place_in_whatever_order_it_came(hosts: list[HostFacts]) -> None:
    found = grouped(*hosts)
    assert found == grouped(*sorted(hosts, key=lambda each: each.store))
    everybody = sorted(each.host for each in hosts)
    assert sorted(name for group in members(found) for name in group) == everybody == sorted(found.order)


@given(fleets())
def test_every_store_that_lacks_it_gets_it_once_or_is_stuck(hosts: list[HostFacts]) -> None:
    store_of = {each.host: each.store for each in hosts}
    standing_of = {each.host: each.stages[DEEP_GEMM].standing for each in hosts if each.stages}

    def stores(names: Iterable[str | None]) -> list[str]:
        return sorted(store_of[name] for name in names if name)

    for group in grouped(*hosts).groups:
        needing = {store_of[name] for name in group.hosts if name in standing_of}
        for share in group.shares:
            givers = {*stores(share.sources), *stores([share.publisher])}
            receiving = stores(share.receivers)
            assert len(receiving) == len(set(receiving)), "files reach a store once"
            assert givers.isdisjoint(receiving)
            assert bool(givers) != bool(share.stuck)
            assert givers | set(receiving) | set(stores(share.stuck)) == needing
            assert all(standing_of[name] is MISSING for name in share.builders)
