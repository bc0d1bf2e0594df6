"""What a host of a group does next: receive what another has, build what nobody has, wait, or prove. Pure.

Whatever is there already is received first, from the host that has most of what is lacking and serves the fewest. What
nobody has is built by the first host that asks; the others wait for it. Hosts of one store work one after another. A
host without nvcc leaves the building to those that have one, which could not use what it would build.
"""

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum

from pydantic import Field

from rayprep.base.records import Record, Utf8
from rayprep.model.completion import Key
from rayprep.model.fleet.grouping import HostFacts, Standing
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


_WRITES = (MoveKind.RECEIVE, MoveKind.BUILD, MoveKind.PART, MoveKind.GATHER)


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


class Board:
    """What the hosts of one group have and do at this moment, so laid out that each decision costs the same.

    A fleet asks for all its waiting hosts several times a second; whoever gets a move is to `begin` it here.

    Args:
        facts: of all hosts of the group, as they stand now.
        busy: what they do now; other groups' hosts may be among them.
        gone: hosts that cannot serve.
        running: hosts that are at work, or about to be.
    """

    def __init__(
        self,
        facts: Mapping[str, HostFacts],
        busy: Mapping[str, Move],
        gone: frozenset[str] = frozenset(),
        running: frozenset[str] = frozenset(),
    ) -> None:
        self.facts = facts
        self._writers: dict[str, str] = {}
        """Store -> who writes into it."""
        self._builders: dict[StageName, str] = {}
        self._serving = Counter(move.other for move in busy.values() if move.kind is MoveKind.RECEIVE)
        self._givers: dict[frozenset[StageName], list[_Giver]] = defaultdict(list)
        """What they have -> all that have just that, those first that serve the fewest."""
        for host in facts.keys() - gone:
            insort(self._givers[_valid(facts[host])], (self._serving[host], host))
        for host in sorted(busy.keys() & facts.keys()):
            self._note(host, busy[host])
        self._equipped: dict[StageName, str] = {}
        """Who has nvcc and will build what it lacks."""
        for host in sorted(running & facts.keys()):
            if facts[host].signature.nvcc is not None:
                for stage in _missing(facts[host]):
                    self._equipped.setdefault(stage, host)

    def begin(self, host: str, move: Move) -> None:
        """`host` does `move` from now on."""
        self._note(host, move)
        if move.kind is MoveKind.RECEIVE and move.other is not None:
            givers, served = self._givers[_valid(self.facts[move.other])], self._serving[move.other]
            givers.remove((served, move.other))
            insort(givers, (served + 1, move.other))
            self._serving[move.other] += 1

    def _note(self, host: str, move: Move) -> None:
        if move.kind in _WRITES:
            self._writers.setdefault(self.facts[host].store, host)
        if move.kind is MoveKind.BUILD:
            for stage in move.stages:
                self._builders.setdefault(stage, host)

    def writer(self, host: str) -> str | None:
        """Who else writes into the store of `host` now."""
        found = self._writers.get(self.facts[host].store)
        return None if found == host else found

    def builder(self, stages: Iterable[StageName]) -> str | None:
        """Who builds some of these now."""
        return min((self._builders[stage] for stage in stages if stage in self._builders), default=None)

    def better_equipped(self, own: HostFacts, stages: Iterable[StageName]) -> str | None:
        """Who will build some of these, where this host has no nvcc."""
        if own.signature.nvcc is not None:
            return None
        return next((self._equipped[stage] for stage in stages if stage in self._equipped), None)

    def giver(self, own: HostFacts, lacking: tuple[StageName, ...], failed: Collection[str]) -> Move | None:
        """To receive from whoever has most of what is lacking and serves the fewest, or to wait for it."""
        found = []
        for valid, givers in self._givers.items():
            offered = tuple(stage for stage in lacking if stage in valid)
            able = (each for each in givers if each[1] not in failed and _serves(self.facts[each[1]], own))
            if offered and (first := next(able, None)):
                found.append((-len(offered), first, offered))
        if not found:
            return None
        _, (served, giver), offered = min(found)
        kind = MoveKind.RECEIVE if served < RECEIVERS_AT_ONCE else MoveKind.WAIT
        return Move(kind=kind, other=giver, stages=offered)


_Giver = tuple[int, str]
"""How many it serves now, and its name."""


def _valid(facts: HostFacts) -> frozenset[StageName]:
    return frozenset(stage for stage, each in facts.stages.items() if each.standing is Standing.VALID)


def _missing(facts: HostFacts) -> list[StageName]:
    return [stage for stage, each in facts.stages.items() if each.standing is Standing.MISSING]


def _serves(other: HostFacts, own: HostFacts) -> bool:
    """What was built without nvcc does not serve a host that has one."""
    return other.store != own.store and (other.signature.nvcc is not None or own.signature.nvcc is None)


def next_move(host: str, board: Board, failed: Collection[str] = ()) -> Move:
    """Decides for one host of the board that is about to begin, or that has just done a step.

    Args:
        failed: hosts that failed it as a source.
    """
    own = board.facts[host]
    lacking = tuple(stage for stage, each in own.stages.items() if each.standing is not Standing.VALID)
    if not lacking:
        return Move(kind=MoveKind.PROVE)
    if mate := board.writer(host):
        return Move(kind=MoveKind.WAIT, other=mate, stages=lacking)
    if move := board.giver(own, lacking, failed):
        return move
    if builder := board.builder(lacking):
        return Move(kind=MoveKind.WAIT, other=builder, stages=lacking)
    if builder := board.better_equipped(own, lacking):
        return Move(kind=MoveKind.WAIT, other=builder, stages=lacking)
    able = tuple(stage for stage in lacking if own.stages[stage].standing is Standing.MISSING)
    return Move(kind=MoveKind.BUILD if able else MoveKind.PROVE, stages=able)


def with_standing(facts: HostFacts, stages: Collection[StageName], standing: Standing) -> HostFacts:
    """The same host, these stages of which stand so."""
    changed = {
        stage: each.model_copy(update={"standing": standing}) if stage in stages else each
        for stage, each in facts.stages.items()
    }
    return facts.model_copy(update={"stages": changed})
