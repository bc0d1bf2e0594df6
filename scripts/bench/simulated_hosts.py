"""Hosts that only talk: each answers the driver, holds its leases and says what a real host said, and does no work."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rayprep
from rayprep.base.records import parse_utc, read_tolerant, utc_now
from rayprep.fleet.agent.lease_holder import Leases
from rayprep.fleet.agent.messages import Asked, Done, Report
from rayprep.fleet.event_batcher import Reporter
from rayprep.fleet.handles import Handle
from rayprep.fleet.remote_host import Member
from rayprep.model.caches import CacheName
from rayprep.model.completion import Key
from rayprep.model.events import Event, Phase, event
from rayprep.model.fleet.grouping import HostFacts, StageStanding, Standing
from rayprep.model.fleet.leases import Holder
from rayprep.model.proof import VERIFY
from rayprep.model.result import NodeBlock, PrepResult, Received
from rayprep.model.snapshot import CacheSnapshot, ProfileSnapshot
from rayprep.model.stages import StageName

PLAYERS = 4
STAGES = (StageName.DEEP_GEMM, StageName.FLASHINFER, StageName.SERVE)
HEARTBEAT_S = 60.0
RECEIVED_BYTES = 64 << 20
_EVIDENCE = Path(__file__).parents[2] / "tests" / "gpu" / "evidence" / "hopper" / "ours"


@dataclass(frozen=True)
class Script:
    """What every host says and how long it takes, from a session on an H200, and the result that it ended with."""

    build: tuple[tuple[float, Event], ...]
    """Of the host that builds, to the start of its proof, with the seconds from the first."""
    noops: tuple[Event, ...]
    """Of the stages, when all that was received is found."""
    proof: tuple[Event, ...]
    """With its seconds from the start, as far as it says them."""
    ends: tuple[Event, ...]
    result: PrepResult
    receive_s: float
    prove_s: float


def read_script(receive_s: float, prove_s: float) -> Script:
    text = (_EVIDENCE / "sessions.txt").read_text(encoding="utf-8")
    built, again = (_events(text, session) for session in ("timed", "again"))
    first = parse_utc(built[0].ts)
    return Script(
        build=tuple(((parse_utc(each.ts) - first).total_seconds(), each) for each in built if _of_a_stage(each)),
        noops=tuple(each for each in again if _of_a_stage(each)),
        proof=tuple(each for each in built if each.name == VERIFY and each.phase is not Phase.END),
        ends=tuple(each for each in built if each.name in (VERIFY, "ensure") and each.phase is Phase.END),
        result=read_tolerant(PrepResult, (_EVIDENCE / "timed.json").read_bytes()),
        receive_s=receive_s,
        prove_s=prove_s,
    )


def _of_a_stage(each: Event) -> bool:
    return each.name not in (VERIFY, "ensure")


def _events(text: str, session: str) -> list[Event]:
    lines = text.partition(f"== {session}\n")[2].partition("\n== ")[0].splitlines()
    said = [line.removeprefix("OPTIMIZE_JSON ") for line in lines if line.startswith("OPTIMIZE_JSON ")]
    return [Event.model_validate_json(line) for line in said if line.endswith("}")]  # the longest lines are cut there


class Player:
    """Plays many hosts, each call in a thread of its own. Does what `HostAgent` does as far as others notice."""

    def __init__(self, coordinator: Handle, script: Script) -> None:
        self._coordinator, self._script = coordinator, script
        self._has_all: set[str] = set()
        self._reporters: dict[str, Reporter] = {}

    def ping(self, _: str) -> str:
        return rayprep.__version__

    def look(self, host: str, asked: Asked) -> Report:
        signature = self._script.result.run.signature
        standing = Standing.VALID if host in self._has_all else Standing.MISSING
        stages = {stage: StageStanding(key=f"tiny-dense-tp1-{stage:0>16.16}", standing=standing) for stage in STAGES}
        self._coordinator.snapshot.remote(asked.run_id, host, self._snapshot())
        facts = HostFacts(host=host, store=f"store-of-{host}", signature=signature, stages=stages)
        return Report(host=host, rayprep_version=rayprep.__version__, facts=facts)

    def take(self, host: str, asked: Asked, source: str, _: object, keys: Sequence[Key]) -> Done:
        self._say(host, asked, event("receive", Phase.START, settings={"source": source, "stages": len(keys)}))
        took = self._script.receive_s
        with self._held(host, asked, [(f"store-of-{host}", key) for _, key in keys]) as leases:
            time.sleep(took)
            leases.check()
        self._has_all.add(host)
        self._say(host, asked, event("receive", Phase.END, status="ok", duration_s=took, message="as much as usual"))
        stages = tuple(stage for stage, _ in keys)
        received = Received(source=source, stages=stages, files=400, bytes=RECEIVED_BYTES, duration_s=took)
        return Done(received=received)

    def work(self, host: str, asked: Asked, node: NodeBlock, build: Sequence[Key], _: str | None) -> Done:
        with self._held(host, asked, [("*", key) for _, key in build]):
            self._replay(host, asked, self._script.build if build else [(0.0, each) for each in self._script.noops])
            self._prove(host, asked)
        self._has_all.add(host)
        result = self._script.result.model_copy(update={"node": node, "snapshot_before": self._snapshot()})
        return Done(result=result)

    def _prove(self, host: str, asked: Asked) -> None:
        script, started = self._script, time.monotonic()
        self._replay(host, asked, [(each.elapsed_s or 0.0, each) for each in script.proof])
        while (left := started + script.prove_s - time.monotonic()) > 0:
            time.sleep(min(left, HEARTBEAT_S))
            self._say(host, asked, script.proof[-1])
        self._replay(host, asked, [(0.0, each) for each in script.ends])

    def _replay(self, host: str, asked: Asked, lines: Iterable[tuple[float, Event]]) -> None:
        started = time.monotonic()
        for after, each in lines:
            time.sleep(max(0.0, started + after - time.monotonic()))
            self._say(host, asked, each)

    def _held(self, host: str, asked: Asked, wanted: Sequence[tuple[str, str]]) -> Leases:
        who = Holder(host=host, invocation=asked.invocation, node_id="0")
        deadline = time.monotonic() + asked.resolved.spec.timeout_s
        never = threading.Event().is_set
        return Leases(self._coordinator, who, wanted, lambda _: 0, lambda *_: None, never, deadline)

    def _say(self, host: str, asked: Asked, each: Event) -> None:
        if host not in self._reporters:
            self._reporters[host] = Reporter(self._coordinator, asked.run_id, host, asked.gather_s)
        self._reporters[host].say(each.model_copy(update={"ts": utc_now()}))
        if each.phase is Phase.END and each.name in ("receive", "ensure"):
            self._reporters[host].flush()

    def _snapshot(self) -> ProfileSnapshot:
        cache = CacheSnapshot(exists=False, valid=False, path="nowhere", signature=self._script.result.run.signature)
        caches = {each.value: cache for each in CacheName}
        return ProfileSnapshot(partial=False, profiles_root="/profiles", taken_at=utc_now(), **caches)


def start_players(coordinator: Handle, script: Script, hosts: int) -> list[Handle]:
    import ray

    make: Any = ray.remote
    kind = make(num_cpus=0, max_concurrency=-(-hosts // PLAYERS) + 4)(Player)
    return [kind.remote(coordinator, script) for _ in range(PLAYERS)]


class SimulatedAgent:
    """The handle of one host's agent, as `Member` uses it: a call goes to the host's player, with its name."""

    def __init__(self, player: Handle, host: str) -> None:
        self._player, self._host = player, host

    def __getattr__(self, method: str) -> "_Call":
        if method.startswith("_"):
            raise AttributeError(method)
        return _Call(getattr(self._player, method), self._host)


@dataclass(frozen=True)
class _Call:
    method: Handle
    host: str

    def options(self, **_: object) -> "_Call":
        return self

    def remote(self, *args: object) -> Handle:
        return self.method.remote(self.host, *args)


class SimulatedMember(Member):
    """A host without a process of its own to end."""

    def let_go(self) -> None:
        self.agent = None
