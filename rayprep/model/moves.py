"""What a host of a group does next: receive what another has, build what nobody has, wait, or prove. Pure.

Whatever is there already is received first, from the host that has most of what is lacking and serves the fewest. What
nobody has is built by the first host that asks; the others wait for it. Hosts of one store work one after another.
"""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from rayprep.model.base import Record, Utf8
from rayprep.model.grouping import HostFacts, Standing
from rayprep.model.package import Key
from rayprep.model.stages import StageName

RECEIVERS_AT_ONCE = 3
"""So many one host serves side by side; the others wait for it, or for one that has received from it."""


class MoveKind(StrEnum):
    RECEIVE = "receive"
    BUILD = "build"
    PART = "part"
    """Builds some units of what its group lacks."""
    GATHER = "gather"
    """Receives the part that another has built."""
    PROVE = "prove"
    """Nothing is left to build: all stages are no-ops, or cannot be built here and say so, and the proof remains."""
    WAIT = "wait"


class Move(Record):
    """One step of one host."""

    kind: MoveKind
    other: Utf8 | None = None
    """From whom it receives, or for whom it waits."""
    stages: tuple[StageName, ...] = ()
    """What it receives or builds."""
    part: dict[StageName, tuple[str, ...]] = Field(default_factory=dict)
    """The units of a part."""
    keys: tuple[Key, ...] = ()
    """The completions of a part to be gathered."""


def next_move(host: str, facts: Mapping[str, HostFacts], busy: Mapping[str, Move], gone: frozenset[str]) -> Move:
    """Decides for one host that is about to begin, or that has just done a step.

    Args:
        facts: of all hosts of its group, as they stand now, itself among them.
        busy: what the others do at this moment.
        gone: hosts that cannot serve: lost, or failed as a source.
    """
    own = facts[host]
    lacking = tuple(stage for stage, each in own.stages.items() if each.standing is not Standing.VALID)
    if not lacking:
        return Move(kind=MoveKind.PROVE)
    if mate := _working_mate(host, facts, busy):
        return Move(kind=MoveKind.WAIT, other=mate, stages=lacking)
    offers = {other: _offered(facts[other], own, lacking) for other in facts if other not in gone}
    offers = {other: stages for other, stages in offers.items() if stages and facts[other].store != own.store}
    if offers:
        return _take(offers, busy)
    if builder := _builder(host, lacking, facts, busy):
        return Move(kind=MoveKind.WAIT, other=builder, stages=lacking)
    able = tuple(stage for stage in lacking if own.stages[stage].standing is Standing.MISSING)
    return Move(kind=MoveKind.BUILD if able else MoveKind.PROVE, stages=able)


def _working_mate(host: str, facts: Mapping[str, HostFacts], busy: Mapping[str, Move]) -> str | None:
    """Another host that writes into the same store now."""
    writes = (MoveKind.RECEIVE, MoveKind.BUILD, MoveKind.PART, MoveKind.GATHER)
    mates = (other for other, move in busy.items() if move.kind in writes and other != host and other in facts)
    return next((other for other in sorted(mates) if facts[other].store == facts[host].store), None)


def _offered(other: HostFacts, own: HostFacts, lacking: tuple[StageName, ...]) -> tuple[StageName, ...]:
    if other.host == own.host:
        return ()
    return tuple(stage for stage in lacking if stage in other.stages and other.stages[stage].standing is Standing.VALID)


def _take(offers: Mapping[str, tuple[StageName, ...]], busy: Mapping[str, Move]) -> Move:
    serving = [move.other for move in busy.values() if move.kind is MoveKind.RECEIVE]
    most = max(len(stages) for stages in offers.values())
    givers = sorted((serving.count(other), other) for other, stages in offers.items() if len(stages) == most)
    count, giver = givers[0]
    kind = MoveKind.RECEIVE if count < RECEIVERS_AT_ONCE else MoveKind.WAIT
    return Move(kind=kind, other=giver, stages=offers[giver])


def _builder(
    host: str, lacking: tuple[StageName, ...], facts: Mapping[str, HostFacts], busy: Mapping[str, Move]
) -> str | None:
    """Who builds some of what is lacking now."""
    building = (
        other
        for other, move in busy.items()
        if other != host and other in facts and move.kind is MoveKind.BUILD and set(move.stages) & set(lacking)
    )
    return min(building, default=None)


def with_valid(facts: HostFacts, stages: tuple[StageName, ...]) -> HostFacts:
    """The same host with these stages valid."""
    changed = {
        stage: each.model_copy(update={"standing": Standing.VALID}) if stage in stages else each
        for stage, each in facts.stages.items()
    }
    return facts.model_copy(update={"stages": changed})
