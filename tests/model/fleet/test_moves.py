"""What a host of a group does next: examples, and a whole group carried to its end in every order."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rayprep.model.fleet.grouping import HostFacts, StageStanding, Standing
from rayprep.model.fleet.moves import RECEIVERS_AT_ONCE, Board, Move, MoveKind, next_move, with_standing
from rayprep.model.stages import StageName
from tests.model.samples import signature

A, B = StageName.DEEP_GEMM, StageName.SERVE
V, M, U = Standing.VALID, Standing.MISSING, Standing.UNABLE


def host(name: str, store: str | None = None, nvcc: str | None = "13.0.88", **standing: Standing) -> HostFacts:
    stages = {StageName(stage): StageStanding(key=f"key-{stage}", standing=each) for stage, each in standing.items()}
    return HostFacts(host=name, store=store or f"store-{name}", signature=signature(nvcc=nvcc), stages=stages)


def facts(*hosts: HostFacts) -> dict[str, HostFacts]:
    return {each.host: each for each in hosts}


def move(name: str, *hosts: HostFacts, gone: frozenset[str] = frozenset(), **busy: Move) -> Move:
    return next_move(name, Board(facts(*hosts), busy, gone))


def test_nobody_has_it_so_the_first_who_asks_builds() -> None:
    assert move("a", host("a", deep_gemm=M, serve=M), host("b", deep_gemm=M, serve=M)) == Move(
        kind=MoveKind.BUILD, stages=(A, B)
    )


def test_the_others_wait_for_the_builder() -> None:
    building = Move(kind=MoveKind.BUILD, stages=(A,))
    asked = move("b", host("a", deep_gemm=M), host("b", deep_gemm=M), a=building)
    assert (asked.kind, asked.other) == (MoveKind.WAIT, "a")


def test_what_is_there_is_received_before_anything_is_built() -> None:
    asked = move("b", host("a", deep_gemm=V, serve=M), host("b", deep_gemm=M, serve=M))
    assert asked == Move(kind=MoveKind.RECEIVE, other="a", stages=(A,))


def test_a_source_that_failed_is_not_asked_again() -> None:
    hosts = (host("a", deep_gemm=V), host("b", deep_gemm=M), host("c", deep_gemm=V))
    assert move("b", *hosts, gone=frozenset({"a"})).other == "c"
    assert move("b", *hosts, gone=frozenset({"a", "c"})).kind is MoveKind.BUILD
    board = Board(facts(*hosts), {})
    assert (next_move("b", board, {"a"}).other, next_move("b", board).other) == ("c", "a")


def test_a_source_serves_a_few_at_once() -> None:
    hosts = [host("a", deep_gemm=V), *(host(f"r{number}", deep_gemm=M) for number in range(RECEIVERS_AT_ONCE + 1))]
    busy = {f"r{number}": Move(kind=MoveKind.RECEIVE, other="a", stages=(A,)) for number in range(RECEIVERS_AT_ONCE)}
    last = f"r{RECEIVERS_AT_ONCE}"
    assert next_move(last, Board(facts(*hosts), busy)).kind is MoveKind.WAIT
    # One that has received serves in its turn.
    hosts[1] = host("r0", deep_gemm=V)
    del busy["r0"]
    assert next_move(last, Board(facts(*hosts), busy)).other == "r0"


def test_moves_that_begin_on_a_board_count_as_if_it_were_laid_out_anew() -> None:
    hosts = facts(
        *(host(f"v{number}", deep_gemm=V) for number in range(2)), *(host(f"r{n}", deep_gemm=M) for n in range(8))
    )
    board, busy = Board(hosts, {}), dict[str, Move]()
    for name in sorted(hosts):
        asked = next_move(name, board)
        assert asked == next_move(name, Board(hosts, busy))
        board.begin(name, asked)
        if asked.kind is not MoveKind.WAIT:
            busy[name] = asked
    served = Counter(each.other for each in busy.values() if each.kind is MoveKind.RECEIVE)
    assert served == {"v0": RECEIVERS_AT_ONCE, "v1": RECEIVERS_AT_ONCE}


def test_hosts_of_one_store_work_one_after_another() -> None:
    hosts = (host("a", "nfs", deep_gemm=M), host("b", "nfs", deep_gemm=M), host("c", deep_gemm=V))
    receiving = Move(kind=MoveKind.RECEIVE, other="c", stages=(A,))
    assert move("b", *hosts, a=receiving) == Move(kind=MoveKind.WAIT, other="a", stages=(A,))


def test_what_cannot_be_built_here_is_received_or_left_to_the_stage_to_say() -> None:
    assert move("a", host("a", deep_gemm=U), host("b", deep_gemm=V)).kind is MoveKind.RECEIVE
    assert move("a", host("a", deep_gemm=U), host("b", deep_gemm=U)).kind is MoveKind.PROVE
    building = Move(kind=MoveKind.BUILD, stages=(A,))
    assert move("a", host("a", deep_gemm=U), host("b", deep_gemm=M), b=building).kind is MoveKind.WAIT


def test_a_host_without_nvcc_leaves_the_building_to_who_has_it() -> None:
    bare, other = host("a", nvcc=None, serve=M), host("b", serve=M)
    both = facts(bare, other)
    asked = next_move("a", Board(both, {}, running=frozenset("ab")))
    assert asked == Move(kind=MoveKind.WAIT, other="b", stages=(B,))
    assert next_move("b", Board(both, {}, running=frozenset("ab"))).kind is MoveKind.BUILD
    # Who has finally failed builds nothing any more, and neither does who cannot.
    assert next_move("a", Board(both, {}, running=frozenset("a"))).kind is MoveKind.BUILD
    unable = facts(bare, host("b", serve=U))
    assert next_move("a", Board(unable, {}, running=frozenset("ab"))).kind is MoveKind.BUILD


def test_what_was_built_without_nvcc_is_not_offered_to_who_has_it() -> None:
    bare = host("a", nvcc=None, serve=V)
    assert move("b", bare, host("b", serve=M)).kind is MoveKind.BUILD
    assert move("b", bare, host("b", nvcc=None, serve=M)).kind is MoveKind.RECEIVE


def test_nothing_lacking_leaves_the_proof() -> None:
    assert move("a", host("a", deep_gemm=V), host("b", deep_gemm=M)).kind is MoveKind.PROVE


@given(
    standings=st.lists(st.tuples(st.sampled_from([V, M]), st.sampled_from([V, M])), min_size=1, max_size=6),
    stores=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    data=st.data(),
)
def test_every_group_ends_with_each_stage_built_at_most_once(
    standings: list[tuple[Standing, Standing]], stores: list[int], data: st.DataObject
) -> None:
    """Hosts begin and end their steps in any order; a step that ends does what it should."""
    known = facts(
        *(
            host(f"h{number}", f"s{stores[number]}", deep_gemm=one, serve=two)
            for number, (one, two) in enumerate(standings)
        )
    )
    known = {name: _as_its_store(each, known) for name, each in known.items()}
    lacked = [stage for stage in (A, B) if not any(each.stages[stage].standing is V for each in known.values())]
    busy: dict[str, Move] = {}
    waiting = set(known)
    built: list[StageName] = []
    for _ in range(200):
        if not waiting and not busy:
            break
        name = data.draw(st.sampled_from(sorted(waiting | busy.keys())))
        if name in busy:
            ended = busy.pop(name)
            for mate in known.values():
                if mate.store == known[name].store:
                    known[mate.host] = with_standing(known[mate.host], ended.stages, Standing.VALID)
            if ended.kind is not MoveKind.PROVE:
                waiting.add(name)
            continue
        asked = next_move(name, Board(known, busy))
        if asked.kind is MoveKind.WAIT:
            assert busy, "nobody waits for nobody"
            continue
        if asked.kind is MoveKind.BUILD:
            built += asked.stages
        waiting.discard(name)
        busy[name] = asked
    else:
        # Whoever draws badly waits for long; what is left must still be able to go on.
        return
    assert sorted(built) == sorted(lacked)
    assert all(each.standing is V for one in known.values() for each in one.stages.values())


def _as_its_store(one: HostFacts, known: dict[str, HostFacts]) -> HostFacts:
    """Hosts of one store see the same files."""
    mates = [each for each in known.values() if each.store == one.store]
    valid = tuple(stage for stage in one.stages if any(each.stages[stage].standing is V for each in mates))
    return with_standing(one, valid, Standing.VALID)
