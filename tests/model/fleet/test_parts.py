"""Which host builds which units, and what each does next until one of them has all."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.model.fleet.grouping import HostFacts, StageStanding, Standing
from rayprep.model.fleet.moves import MoveKind
from rayprep.model.fleet.parts import Deal, deal_out, dealt_move, part_name
from rayprep.model.stages import StageName
from tests.model.samples import signature

A, B, SERVE = StageName.DEEP_GEMM, StageName.FLASHINFER, StageName.SERVE
STAGES = (A, B, SERVE)


def host(name: str, units: int = 4, standing: Standing = Standing.MISSING, store: str | None = None) -> HostFacts:
    named = tuple(f"unit-{number}" for number in range(units))
    stages = {stage: StageStanding(key="k", standing=standing, units=named, seconds=100.0) for stage in STAGES}
    return HostFacts(host=name, store=store or f"store-{name}", signature=signature(), stages=stages)


def dealt(*hosts: HostFacts, from_s: float = 0.0) -> Deal:
    deal = deal_out(hosts, STAGES, from_s)
    assert deal is not None
    return deal


@given(st.integers(2, 9), st.integers(1, 30))
def test_every_unit_is_somebodys_and_no_two_differ_by_more_than_one(hosts: int, units: int) -> None:
    deal = dealt(*(host(f"h{number}", units) for number in range(hosts)))
    for stage in (A, B):
        built = Counter(unit for part in deal.parts.values() for unit in part.get(stage, ()))
        assert built == Counter(host("x", units).stages[stage].units)
    sizes = [sum(map(len, deal.parts.get(f"h{number}", {}).values())) for number in range(hosts)]
    assert max(sizes) - min(sizes) <= 1
    assert all(SERVE not in part for part in deal.parts.values()), "a server compiles for itself"


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param([host("a")], id="one host"),
        pytest.param([host("a"), host("b", standing=Standing.UNABLE)], id="no compiler on the other"),
        pytest.param([host("a", store="s"), host("b", store="s")], id="one store"),
        pytest.param([host("a", 0), host("b", 0)], id="nothing to build"),
    ],
)
def test_one_host_builds_where_nobody_can_help(hosts: list[HostFacts]) -> None:
    assert deal_out(hosts, STAGES, 0.0) is None


def test_little_is_not_dealt() -> None:
    hosts = (host("a"), host("b"))
    assert deal_out(hosts, STAGES, 200.1) is None
    assert deal_out(hosts, STAGES, 200.0) is not None
    assert deal_out(hosts, (), 0.0) is None


def test_of_one_store_one_host_takes_part_and_it_is_the_publisher_if_that_is_its_own() -> None:
    deal = dealt(host("a", store="s"), host("b", store="s"), host("c"))
    assert (deal.publisher, set(deal.parts)) == ("a", {"a", "c"})


def test_from_the_parts_to_the_whole() -> None:
    deal, alive = dealt(host("a"), host("b"), host("c")), {"a", "b", "c"}
    first = dealt_move("b", deal, alive)
    assert first is not None
    assert (first.kind, first.part) == (MoveKind.PART, deal.parts["b"])
    deal = deal.with_made("a", [(A, "part-a")]).with_made("b", [(A, "part-b"), (B, "part-b")])
    gather = dealt_move("a", deal, alive)
    assert gather is not None
    assert (gather.kind, gather.other, gather.keys) == (MoveKind.GATHER, "b", ((A, "part-b"), (B, "part-b")))
    deal = deal.with_gathered("b")
    waiting = dealt_move("a", deal, alive)
    assert waiting is not None
    assert (waiting.kind, waiting.other) == (MoveKind.WAIT, "c")
    helper = dealt_move("b", deal, alive)
    assert helper is not None
    assert (helper.kind, helper.other) == (MoveKind.WAIT, "a")
    assert dealt_move("a", deal.with_made("c", []), alive) is None, "one that failed is not waited for"
    assert dealt_move("a", deal, alive - {"c"}) is None, "nor is one that is lost"
    assert dealt_move("b", deal, alive - {"a"}) is None, "without its publisher the deal is over"


def test_a_part_is_named_by_its_units() -> None:
    assert part_name({A: ("x", "y")}) == part_name({A: ("y", "x")})
    assert len({part_name(part) for part in ({A: ("x",)}, {B: ("x",)}, {A: ("x", "y")}, {A: ("x",), B: ("x",)})}) == 4
