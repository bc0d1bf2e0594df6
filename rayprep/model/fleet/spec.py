"""A fleet's request: which nodes of a Ray cluster, in which order they start, and who proves. Pure choices over it."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise

from pydantic import Field

from rayprep.base.errors import BadRequest, HostUnfit
from rayprep.base.records import Record, Utf8
from rayprep.model.fleet.parts import WORTH_S
from rayprep.model.spec import DeviceChoice

HOST_LABEL = "rayprep-host"
"""A node's label that says what the host is called, where its host name does not tell it from the others."""


class VerifyScope(StrEnum):
    """Which hosts prove on a server that nothing is left to compile."""

    ALL = "all"
    CANARY = "canary"
    """The hosts of the first wave."""
    NONE = "none"


class FleetSpec(Record):
    """What was asked for about the fleet, beside what each host is asked for."""

    nodes: tuple[Utf8, ...] = ()
    """Host names; empty means all."""
    exclude: tuple[Utf8, ...] = ()
    labels: dict[Utf8, Utf8] = Field(default_factory=dict)
    """Ray node labels that a host must have."""
    require_uniform: bool = False
    canary: int | None = None
    wave: str | None = None
    max_failures: int | None = None
    node_retries: int = 1
    verify: VerifyScope = VerifyScope.ALL
    deal_from_s: float = Field(default=WORTH_S, ge=0)
    """Reckoned seconds from which the hosts of a group share what is to be built."""


class NodeInfo(Record):
    """One living node of the cluster."""

    host: Utf8
    node_id: str
    """Ray's; a host that leaves and returns has a new one."""
    address: str
    port: int
    """Of its raylet: whether something answers there says sooner than Ray does whether the node lives."""
    gpus: int
    """What Ray hands out."""
    labels: dict[str, str]
    head: bool


def nodes_of(listed: Iterable[Mapping[str, object]]) -> tuple[NodeInfo, ...]:
    """The living nodes of `ray.nodes()`, by host."""
    found = [_node(each) for each in listed if each["Alive"]]
    return tuple(sorted(found, key=lambda each: (each.host, each.node_id)))


def _node(listed: Mapping[str, object]) -> NodeInfo:
    resources, labels = listed.get("Resources"), listed.get("Labels")
    resources = resources if isinstance(resources, Mapping) else {}
    labels = {str(key): str(value) for key, value in labels.items()} if isinstance(labels, Mapping) else {}
    return NodeInfo(
        host=labels.get(HOST_LABEL) or str(listed["NodeManagerHostname"]),
        node_id=str(listed["NodeID"]),
        address=str(listed["NodeManagerAddress"]),
        port=int(str(listed["NodeManagerPort"])),
        gpus=int(resources.get("GPU", 0)),
        labels=labels,
        head="node:__internal_head__" in resources,
    )


def choose_nodes(nodes: Sequence[NodeInfo], spec: FleetSpec, device: DeviceChoice) -> tuple[NodeInfo, ...]:
    """The nodes that take part: without a choice, those with GPUs, or all for the CPU.

    Raises:
        BadRequest: a name is no node's, or two nodes have one name.
        HostUnfit: none is left.
    """
    names = [each.host for each in nodes]
    if unknown := sorted({*spec.nodes, *spec.exclude} - set(names)):
        have = ", ".join(sorted(set(names))) or "none"
        raise BadRequest(f"the cluster has no living node {unknown[0]}", hint=f"it has {have}")
    chosen = [each for each in nodes if _wanted(each, spec)]
    if not spec.nodes and device is not DeviceChoice.CPU:
        chosen = [each for each in chosen if each.gpus]
    if not chosen:
        on_cpu, hint = device is DeviceChoice.CPU, "see --nodes, --exclude and --labels"
        why = "no node is left" if on_cpu else "no living node of the cluster has a GPU"
        raise HostUnfit(why, hint=hint if on_cpu else f"{hint}, or give --device cpu")
    for one, other in pairwise(chosen):
        if one.host == other.host:
            raise BadRequest(
                f"two nodes are both called {one.host} ({one.address}, {other.address})",
                hint=f"start them with a label {HOST_LABEL}=NAME, or leave one out with --exclude",
            )
    return tuple(chosen)


def _wanted(node: NodeInfo, spec: FleetSpec) -> bool:
    labelled = all(node.labels.get(key) == value for key, value in spec.labels.items())
    return labelled and node.host not in spec.exclude and (not spec.nodes or node.host in spec.nodes)


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` each. Raises BadRequest."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise BadRequest(f"--labels {text!r} is not KEY=VALUE", hint="such as --labels pool=gh200")
        found[key] = value
    return found
