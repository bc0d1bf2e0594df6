"""The actors of a fleet's run: the coordinator on the head, an agent on each host, and claims on its GPUs."""

import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rayprep
from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.fleet.agent.agent import CONCURRENCY_GROUPS, HostAgent
from rayprep.fleet.coordinator.claim import GpuClaim
from rayprep.fleet.coordinator.coordinator import LEASE_TTL_S, NAME, Coordinator
from rayprep.fleet.handles import Handle
from rayprep.fleet.runtime.session import NAMESPACE
from rayprep.model.fleet.spec import NodeInfo, nodes_of
from rayprep.model.fleet.status import FleetStatus
from rayprep.model.result import NodeBlock

START_S = 60.0
"""For an actor to be placed and to answer."""
KNOCK_S = 2.0


def living_nodes() -> tuple[NodeInfo, ...]:
    """The cluster's nodes as Ray sees them now."""
    return nodes_of(ray.nodes())  # type: ignore[no-untyped-call]


def answers(node: NodeInfo) -> bool:
    """Whether its raylet takes a connection. Ray itself calls a node alive for a while after its end."""
    try:
        socket.create_connection((node.address, node.port), timeout=KNOCK_S).close()
    except OSError:
        return False
    return True


def join_coordinator(nodes: Sequence[NodeInfo], state: Path, ttl_s: float = LEASE_TTL_S) -> Handle:
    """The cluster's one coordinator, made where there is none.

    Args:
        ttl_s: how long a lease lasts that is not renewed, where the coordinator is made here.

    Raises:
        HostUnfit: it cannot be placed, cannot read its leases, or was started from another version of rayprep.
    """
    head = next((node for node in nodes if node.head), nodes[0])
    made = _remote(Coordinator).options(
        **_pinned(head),
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        enable_task_events=False,  # of thousands of calls, each of which would be told to Ray's own books
    )
    coordinator = made.remote(state, ttl_s)
    try:
        version: str = ray.get(coordinator.version.remote(), timeout=START_S)
    except ray.exceptions.RayError as error:
        raise _not_started(head.host, error) from None
    check_version(f"the coordinator on {head.host}", version)
    return coordinator


def _not_started(host: str, error: Exception) -> HostUnfit:
    """Why the coordinator does not answer.

    What its own `__init__` raised is the cause of a task's error, from which Ray makes that of the dead actor.
    """
    failure = f"the coordinator does not start on {host}"
    own = getattr(next(iter(error.args), None), "cause", None)
    if isinstance(own, HostUnfit):
        return HostUnfit(f"{failure}: {own.message}", hint=own.hint, error_type=own.error_type)
    begun = getattr(error, "actor_init_failed", False)  # then Ray shows the whole trace, whose last line says why
    return HostUnfit(
        f"{failure}: {str(error).splitlines()[-1 if begun else 0]}",
        hint="is rayprep installed there, in the Python that Ray runs?",
        error_type=ErrorType.RAY_UNAVAILABLE,
    )


def check_version(who: str, version: str) -> None:
    """Raises HostUnfit where `who` has another rayprep than this driver."""
    if version != rayprep.__version__:
        raise HostUnfit(
            f"{who} has rayprep {version}, this one is {rayprep.__version__}",
            hint="install one version on all hosts; a coordinator of the old one ends 10 minutes after its last run",
            error_type=ErrorType.RAY_UNAVAILABLE,
        )


def start_agent(node: NodeInfo, coordinator: Handle, kind: type[HostAgent] = HostAgent) -> Handle:
    """An agent on exactly this node. It dies with its driver."""
    block = NodeBlock(host=node.host, node_id=node.node_id, address=node.address)
    made = _remote(kind, concurrency_groups=CONCURRENCY_GROUPS).options(**_pinned(node), max_restarts=0)
    return made.remote(block, coordinator)


def pinned_actor(kind: type, node: NodeInfo) -> Handle:
    """A plain actor on exactly this node. It dies with its driver."""
    return _remote(kind).options(**_pinned(node), max_restarts=0).remote()


def claim_gpus(node: NodeInfo) -> Handle:
    """An actor that waits for all GPUs of the node."""
    return _remote(GpuClaim).options(**_pinned(node), max_restarts=0, num_gpus=node.gpus).remote()


def living_actors() -> dict[str, list[Mapping[str, Any]]]:
    """All of the cluster, by their node's id, as Ray describes them. Takes as long as there are actors."""
    from ray._private.state import actors  # nothing else is to fail where a Ray has it under another name

    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in actors().values():
        if each["State"] == "ALIVE":
            found[each["Address"]["NodeID"]].append(each)
    return found


def holders(there: Sequence[Mapping[str, Any]]) -> str:
    """Who may have a node's GPUs: of the living actors there those that are not ours."""
    ours = {HostAgent.__name__, GpuClaim.__name__, Coordinator.__name__}
    named = [
        f"{each['ActorClassName']} (job {each['JobID']}, pid {each['Pid']})"
        for each in there
        if each["ActorClassName"] not in ours
    ]
    claims = [each for each in there if each["ActorClassName"] == GpuClaim.__name__]
    named += [f"another rayprep (job {each['JobID']})" for each in claims]
    return ", ".join(named) or "a task of another job"


def _remote(kind: type, **options: object) -> Any:  # noqa: ANN401 - Ray's own type for it is private
    make: Any = ray.remote
    return make(num_cpus=0, **options)(kind)


def _pinned(node: NodeInfo) -> dict[str, object]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)}


def find_status(run_id: str | None) -> list[FleetStatus]:
    """What the cluster's coordinator knows of one run, or of all; empty where there is none."""
    try:
        coordinator = ray.get_actor(NAME, namespace=NAMESPACE)
        found: list[FleetStatus] = ray.get(coordinator.status.remote(run_id), timeout=START_S)
        return found
    except (ValueError, ray.exceptions.RayError):
        return []
