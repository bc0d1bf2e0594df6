"""Which hosts of a fleet can share what they build, and who builds, ships and receives: pure decisions over facts.

Hosts are one group when their signatures agree in every field that binds a selected stage, so that whatever one of
them builds works on the others. A store is one profiles root as a file system sees it, told by its nonce: what is
built in a store shared by several hosts is there for all of them, and is shipped to none.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import chain, pairwise, zip_longest

from pydantic import Field

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record, Utf8
from rayprep.model.fleet.odd_hosts import Oddity, odd_ones_out
from rayprep.model.signature import Signature, binding_digest
from rayprep.model.stages import StageName


class Standing(StrEnum):
    """How one stage stands on one host, as the plan of that host says."""

    VALID = "valid"
    MISSING = "missing"
    """It would build it."""
    UNABLE = "unable"
    """It lacks it and cannot build it, for want of a compiler, say; it can still receive."""


class StageStanding(Record):
    """One stage on one host."""

    key: str
    standing: Standing
    units: tuple[str, ...] = ()
    """What it would build."""
    seconds: float = 0.0
    """Which is reckoned to take so long."""


class HostFacts(Record):
    """What one host says of itself."""

    host: Utf8
    """Unlike any other in the fleet."""
    store: str
    """The nonce of its profiles root."""
    signature: Signature
    stages: dict[StageName, StageStanding] = Field(default_factory=dict)
    """Without those that are rightly skipped there."""


class StageShare(Record):
    """Who does what for one stage of one group. All hosts are in the order in which they are to be preferred."""

    stage: StageName
    key: str
    sources: tuple[Utf8, ...] = ()
    """Those whose cache is valid."""
    builders: tuple[Utf8, ...] = ()
    """Those that can compile for it, where nobody is a source; the first publishes what all of them made."""
    receivers: tuple[Utf8, ...] = ()
    """One host of each store that lacks it and does not build it: files reach a store once."""
    stuck: tuple[Utf8, ...] = ()
    """Those that stay without it, since nobody has it and nobody can build it."""

    @property
    def publisher(self) -> str | None:
        """The one host that writes the completion; null where there is nothing to build, or nobody to do it."""
        return self.builders[0] if self.builders else None


class Group(Record):
    """Hosts whose artifacts are interchangeable."""

    name: str
    """`group-1` is the largest."""
    digests: dict[StageName, str]
    """The binding digest of each selected stage."""
    stores: dict[str, tuple[Utf8, ...]]
    """Nonce -> its hosts in this group, sorted; the store that most of them share first."""
    shares: tuple[StageShare, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted(chain.from_iterable(self.stores.values())))


class Grouping(Record):
    """The whole fleet."""

    groups: tuple[Group, ...]
    odd: tuple[Oddity, ...]

    @property
    def uniform(self) -> bool:
        """What `--require-uniform` asks for: one group, in which no field differs, not even one that binds nothing."""
        return not self.odd

    @property
    def order(self) -> tuple[str, ...]:
        """All hosts for a rollout: the groups take turns, and in each those come first from whom others receive.

        So the first N hosts are of as many kinds as N allows.
        """
        turns = zip_longest(*map(_givers_first, self.groups))
        return tuple(host for turn in turns for host in turn if host is not None)


def group_hosts(hosts: Iterable[HostFacts], stages: Sequence[StageName]) -> Grouping:
    """Sorts `hosts` into groups and stores, and deals out what is to be done for each of the selected `stages`.

    The answer does not depend on the order of `hosts`.

    Raises:
        BadRequest: two hosts have one name.
    """
    facts = sorted(hosts, key=lambda each: each.host)
    for one, next_one in pairwise(facts):
        if one.host == next_one.host:
            raise BadRequest(f"two nodes are both called {one.host}", hint="leave one out with --exclude")
    members = sorted(_members(facts, stages).items(), key=lambda item: (-len(item[1]), item[1][0].host))
    groups = tuple(
        _group(f"group-{number}", dict(zip(stages, digests, strict=True)), group)
        for number, (digests, group) in enumerate(members, 1)
    )
    return Grouping(groups=groups, odd=odd_ones_out({each.host: each.signature for each in facts}, stages))


_Digests = tuple[str, ...]


def _members(facts: Sequence[HostFacts], stages: Sequence[StageName]) -> dict[_Digests, list[HostFacts]]:
    """The hosts of each group, sorted.

    A host without nvcc is of the largest group that it would be in with that group's nvcc: it can use what that
    compiler made. Where there is none, it is of a group with its like.
    """
    groups: dict[_Digests, list[HostFacts]] = defaultdict(list)
    for each in facts:
        if each.signature.nvcc is not None:
            groups[_digests(each.signature, stages)].append(each)
    compilers = [group[0].signature.nvcc for group in sorted(groups.values(), key=lambda group: -len(group))]
    for each in facts:
        if each.signature.nvcc is None:
            like = (_digests(each.signature.model_copy(update={"nvcc": nvcc}), stages) for nvcc in compilers)
            own = _digests(each.signature, stages)
            groups[next((digests for digests in like if digests in groups), own)].append(each)
    return {digests: sorted(group, key=lambda each: each.host) for digests, group in groups.items()}


def _digests(signature: Signature, stages: Sequence[StageName]) -> _Digests:
    return tuple(binding_digest(stage, signature) for stage in stages)


def _group(name: str, digests: Mapping[StageName, str], members: Sequence[HostFacts]) -> Group:
    by_store: dict[str, list[HostFacts]] = defaultdict(list)
    for each in members:
        by_store[each.store].append(each)
    # Built where most hosts share the files, the least has to be shipped.
    stores = dict(sorted(by_store.items(), key=lambda item: (-len(item[1]), item[1][0].host)))
    shares = [_share(stage, list(stores.values())) for stage in digests]
    return Group(
        name=name,
        digests=dict(digests),
        stores={store: tuple(each.host for each in hosts) for store, hosts in stores.items()},
        shares=tuple(share for share in shares if share),
    )


def _share(stage: StageName, stores: Sequence[Sequence[HostFacts]]) -> StageShare | None:
    """Null where every host rightly skips the stage. `stores` are the hosts of each, best first."""
    needing = [[each for each in hosts if stage in each.stages] for hosts in stores]
    needing = [hosts for hosts in needing if hosts]
    if not needing:
        return None
    sources = _standing(stage, needing, Standing.VALID)
    builders = () if sources else _equipped(_standing(stage, needing, Standing.MISSING))
    givers = sources or builders[:1]
    lacking = [hosts for hosts in needing if not any(each in givers for each in hosts)]
    key_of = givers[0] if givers else needing[0][0]
    return StageShare(
        stage=stage,
        key=key_of.stages[stage].key,
        sources=_names(sources),
        builders=_names(builders),
        receivers=_names(hosts[0] for hosts in lacking) if givers else (),
        stuck=() if givers else _names(chain.from_iterable(lacking)),
    )


def _standing(stage: StageName, stores: Sequence[Sequence[HostFacts]], standing: Standing) -> tuple[HostFacts, ...]:
    return tuple(each for hosts in stores for each in hosts if each.stages[stage].standing is standing)


def _equipped(builders: tuple[HostFacts, ...]) -> tuple[HostFacts, ...]:
    """Those with nvcc, where any has it: hosts with one cannot use what was built without."""
    return tuple(each for each in builders if each.signature.nvcc is not None) or builders


def _names(hosts: Iterable[HostFacts]) -> tuple[str, ...]:
    return tuple(each.host for each in hosts)


def _givers_first(group: Group) -> list[str]:
    givers = [host for share in group.shares for host in (share.publisher, *share.sources) if host is not None]
    return list(dict.fromkeys((*givers, *group.hosts)))
