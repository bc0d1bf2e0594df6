"""Dealing out what a group of hosts lacks: each builds a part of it, and one of them gathers the parts. Pure.

A part is a request for some of the units, with a completion of its own. So it is hashed, shipped and received under the
same checks as everything else. The publisher, who has all parts in the end, finds nothing left to compile and writes
the one completion that takes their place.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

from pydantic import Field

from rayprep.base.records import Record, Utf8
from rayprep.model.completion import Key
from rayprep.model.fleet.grouping import HostFacts, Standing
from rayprep.model.fleet.moves import Move, MoveKind
from rayprep.model.stages import StageName

Part = Mapping[StageName, tuple[str, ...]]
"""Of each stage, some units."""

DEALT = (StageName.DEEP_GEMM, StageName.FLASHINFER)
"""Stages whose units are compiled one by one, in any order, without a server."""
WORTH_S = 300.0
"""Reckoned seconds of one host's build from which dealing is worth its price: the compilers' children start once more,
and the parts have to be gathered. Measured with 16 cores: all of FlashInfer's modules take 95 s, and the longest file
of one of them 88 s; nothing that could be dealt would end sooner."""


def part_name(part: Part) -> str:
    """The same for the same units: what a part's completions are kept under."""
    units = {stage.value: sorted(part[stage]) for stage in sorted(part)}
    return hashlib.sha256(json.dumps(units, sort_keys=True).encode()).hexdigest()[:16]


class Deal(Record):
    """Who builds which part, and how far that is."""

    publisher: Utf8
    parts: dict[Utf8, dict[StageName, tuple[str, ...]]]
    made: dict[Utf8, tuple[Key, ...]] = Field(default_factory=dict)
    """The completions of the parts that are done; none of a host that could not build its own."""
    gathered: frozenset[Utf8] = frozenset()
    """Hosts whose part has come to the publisher, or will not."""

    def with_made(self, host: str, keys: Sequence[Key]) -> "Deal":
        return self.model_copy(update={"made": {**self.made, host: tuple(keys)}})

    def with_gathered(self, host: str) -> "Deal":
        return self.model_copy(update={"gathered": self.gathered | {host}})


def deal_out(hosts: Sequence[HostFacts], stages: Collection[StageName], from_s: float) -> Deal | None:
    """Deals what the first of `hosts` would build of `stages`; None where that is not worth it, or nobody can help.

    Args:
        hosts: of one group, idle; each can take part that lacks a stage and can build it, one of each store.
        from_s: reckoned seconds of the whole, see WORTH_S.
    """
    publisher, takers = hosts[0], list({each.store: each for each in reversed(hosts)}.values())[::-1]
    parts: dict[str, dict[StageName, tuple[str, ...]]] = {}
    seconds, turn = 0.0, 0
    for stage in (stage for stage in DEALT if stage in stages and stage in publisher.stages):
        able = [each.host for each in takers if _can_build(each, stage, publisher)]
        wanted = publisher.stages[stage]
        if publisher.host not in able or len(able) < 2:
            continue
        seconds += wanted.seconds
        turns = cycle(able[turn % len(able) :] + able[: turn % len(able)])
        for unit, host in zip(wanted.units, turns, strict=False):
            mine = parts.setdefault(host, {})
            mine[stage] = (*mine.get(stage, ()), unit)
        turn += len(wanted.units)
    if len(parts) < 2 or seconds < from_s:
        return None
    return Deal(publisher=publisher.host, parts=parts)


def _can_build(each: HostFacts, stage: StageName, like: HostFacts) -> bool:
    own = each.stages.get(stage)
    return own is not None and own.standing is Standing.MISSING and own.key == like.stages[stage].key


def dealt_move(host: str, deal: Deal, alive: Collection[str]) -> Move | None:
    """What `host` does next by the deal; None where the deal is over, and the usual rules hold.

    Args:
        alive: hosts whose agents live. What a lost one was to build is built by the publisher.
    """
    if deal.publisher not in alive:
        return None
    if host in deal.parts and host not in deal.made:
        return Move(kind=MoveKind.PART, stages=tuple(deal.parts[host]), part=deal.parts[host])
    if host != deal.publisher:
        return Move(kind=MoveKind.WAIT, other=deal.publisher)
    others = [each for each in deal.parts if each != host and each in alive and each not in deal.gathered]
    ready = [each for each in others if deal.made.get(each)]
    if ready:
        return Move(kind=MoveKind.GATHER, other=ready[0], stages=_stages(deal.made[ready[0]]), keys=deal.made[ready[0]])
    waited = [each for each in others if each not in deal.made]
    return Move(kind=MoveKind.WAIT, other=waited[0]) if waited else None


def _stages(keys: Sequence[Key]) -> tuple[StageName, ...]:
    return tuple(stage for stage, _ in keys)
