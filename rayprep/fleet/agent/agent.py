"""The agent actor of one host in a fleet: looks, receives, builds, proves, and sends to others.

Three concurrency groups: `ctl` answers and cancels while a step goes on, `stage` does one step at a time, and `ship`
sends. It takes no GPU of Ray's: whoever drives it has claimed them (`claim`). Methods run off the main thread, so
nothing here touches signals.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleBuffer

import rayprep
from rayprep.base.errors import BadRequest, HostUnfit, RayprepError
from rayprep.fleet.agent.host_facts import extras_of, facts_of
from rayprep.fleet.agent.lease_holder import Leases, Wanted
from rayprep.fleet.agent.messages import Asked, Done, Report
from rayprep.fleet.agent.shipping import AHEAD, Packages, PieceStream, SourceFailed
from rayprep.fleet.event_batcher import Reporter
from rayprep.fleet.handles import Handle
from rayprep.host.group_access import set_umask
from rayprep.host.layout import Layout, choose_roots, prepare_root
from rayprep.host.locks import Holder as LockHolder
from rayprep.host.locks import lock_of
from rayprep.model.completion import Key
from rayprep.model.events import Event, Phase, event
from rayprep.model.fleet.leases import Holder, Queued
from rayprep.model.plan import Action
from rayprep.model.result import NodeBlock, Received
from rayprep.model.slug import model_slug
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.node import NodeRequest, Survey, ensure, take_survey
from rayprep.node.inventory import ask, may_ask
from rayprep.node.survey import exact_completions
from rayprep.store.epochs import highest_epoch
from rayprep.store.package.unpack import Receipt, receive
from rayprep.store.snapshot import Wanted as WantedSnapshot
from rayprep.store.snapshot import read_contents, take_snapshot
from rayprep.store.store_id import store_id

CONCURRENCY_GROUPS = {"ctl": 4, "stage": 1, "ship": 4}
EVERYWHERE = "*"
"""The store of a lease on building a key at all: one host of the fleet builds it."""
_STEPS = ("receive", "ensure")


@dataclass
class _Invocation:
    """What an agent remembers of one request, from its first look to its result."""

    name: str
    before: ProfileSnapshot | None = None
    """What lay here when it first looked, before anything was received."""
    waited_s: float = 0.0
    """For leases."""


class HostAgent:
    """One host, for the run of one driver: one request, or those of a campaign, told apart by their invocation."""

    def __init__(self, node: NodeBlock, coordinator: Handle) -> None:
        self._node, self._coordinator = node, coordinator
        self._cancelled = ""
        """The invocation that was cancelled last."""
        self._leases: Leases | None = None
        self._reporter: Reporter | None = None
        self._invocation = _Invocation("")
        self._packages = Packages()
        set_umask()
        # Ray runs its workers at nice 15 unless told otherwise; only root may go back, and others lose little.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)

    def ping(self) -> str:
        """The `ctl` group: the version of rayprep here."""
        return rayprep.__version__

    def cancel(self, invocation: str) -> None:
        """The `ctl` group: the invocation's step ends its children and returns."""
        self._cancelled = invocation

    def look(self, asked: Asked) -> Report:
        """What this host is, and how each stage stands. Hashes with `deep`; builds nothing."""
        report = Report(host=self._node.host, rayprep_version=rayprep.__version__)
        try:
            layout = self._layout(asked)
            prepare_root(layout.profiles, "profiles")
            prepare_root(layout.telemetry, "telemetry")
            layout.refuse_strange_runs(asked.run_id)
            survey = self._survey(asked)
            facts = facts_of(survey, self._node.host)
            self._keep_snapshot(asked, survey)
        except RayprepError as error:
            return report.model_copy(update={"problem": error.line, "problem_code": error.exit_code})
        found = {"facts": facts, "needs_gpus": bool(survey.gpus), "extras": extras_of(survey)}
        told = {"answer": survey.request.answer, "may_ask": may_ask(survey)}
        return report.model_copy(update={**found, **told})

    def _survey(self, asked: Asked) -> Survey:
        """Looks, and where this host is to ask its SGLang and nobody has, asks it and looks by what it says."""
        request, environ = self._request(asked, self._node), self._environ(None)
        survey = take_survey(request, environ)
        if not asked.asks_sglang or not may_ask(survey):
            return survey
        answer = ask(survey, request, environ, lambda: self._cancelled == asked.invocation)
        return take_survey(request.answered(survey.signature, answer), environ)

    def take(self, asked: Asked, source: str, agent: Handle, keys: Sequence[Key]) -> Done:
        """Receives finished stages from another host's agent, and takes them in under this store's leases."""
        layout, started = self._layout(asked), time.monotonic()
        survey = take_survey(self._request(asked, self._node), self._environ(None))
        wanted = [(store_id(layout), key) for _, key in keys]
        self._emit(asked, event("receive", Phase.START, settings={"source": source, "stages": len(keys)}))
        with self._held(asked, layout, wanted) as leases:
            generator = agent.pieces.options(
                concurrency_group="ship", num_returns="streaming", _generator_backpressure_num_objects=AHEAD
            ).remote(asked, list(keys))
            stream = PieceStream(source, generator)
            try:
                report = receive(
                    layout,
                    stream,
                    survey.signature,
                    Receipt(asked.run_id, asked.invocation, leases.epochs, asked.rebuilt(keys)),
                    timeout_s=asked.resolved.spec.timeout_s,
                    on_wait=lambda path, holder, waited: self._waiting_here(asked, str(path), holder, waited),
                    cancelled=lambda: self._is_cancelled(asked),
                )
            except SourceFailed as error:
                return self._not_received(asked, error.message)
            except BadRequest as error:  # what it has sent is damaged, or no package; another source's may be well
                return self._not_received(asked, f"{source}: {error.message}")
        took = round(time.monotonic() - started, 3)
        received = Received(
            source=source,
            stages=tuple(stage for stage, _ in keys),
            files=report.files,
            bytes=report.bytes,
            duration_s=took,
        )
        said = f"{report.files} files, {report.bytes / 2**20:.1f} MiB from {source}"
        self._emit(asked, event("receive", Phase.END, status="ok", duration_s=took, message=said))
        return Done(received=received)

    def _not_received(self, asked: Asked, why: str) -> Done:
        self._emit(asked, event("receive", Phase.END, status="error", message=why))
        return Done(source_problem=why)

    def pieces(self, asked: Asked, keys: Sequence[Key]) -> Iterator[PickleBuffer]:
        """The `ship` group: a package of finished stages."""
        yield from self._packages.pieces(self._layout(asked), keys)

    def work(self, asked: Asked, node: NodeBlock, build: Sequence[Key], visible: str | None) -> Done:
        """Does what the plan says, which is to build only what `build` names, and to prove.

        Args:
            visible: CUDA_VISIBLE_DEVICES, as Ray gave the GPUs to the claim; None without one.
        """
        environ = self._environ(visible)
        request = self._request(asked, node)
        layout = request.layout
        if asked.part:
            decisions = take_survey(request, environ).plan.decisions
            build = [(each.stage, each.key) for each in decisions if each.action is Action.BUILD]
        with self._held(asked, layout, [(EVERYWHERE, key) for _, key in build]) as leases:
            if leases.waited:
                return Done(again=True)
            survey = take_survey(request, environ)
            known = self._known(asked)
            request = request.model_copy(update={"before": known.before, "waited_s": known.waited_s})
            emit, cancelled = (lambda each: self._emit(asked, each)), (lambda: self._is_cancelled(asked))
            result = ensure(request, environ, emit, cancelled, survey)
        made = [(stage, each.key) for stage, each in exact_completions(survey).items() if stage in asked.part]
        return Done(result=result, extras=extras_of(survey), made=tuple(made))

    def _is_cancelled(self, asked: Asked) -> bool:
        """Raises StageError where a lease is lost: the step ends by that, and not as if it had been interrupted."""
        if self._leases is not None:
            self._leases.check()
        return self._cancelled == asked.invocation

    @contextlib.contextmanager
    def _held(self, asked: Asked, layout: Layout, wanted: Sequence[Wanted]) -> Iterator[Leases]:
        spec = asked.resolved.spec
        who = Holder(host=self._node.host, invocation=asked.invocation, node_id=self._node.node_id)
        said = 0.0

        def waiting(which: Wanted, answer: Queued | HostUnfit) -> None:
            nonlocal said
            if time.monotonic() - said < min(spec.heartbeat_s, 10.0):
                return
            said = time.monotonic()
            if isinstance(answer, HostUnfit):
                message = f"the lease on {which[1]} cannot be granted yet: {answer.line}"
                self._emit(asked, event("ensure", Phase.WARNING, message=message))
                return
            holder = answer.holder.host if answer.holder else "nobody yet"
            self._say_waiting(asked, f"lease {which[1]}", holder, answer.held_for_s)

        leases = Leases(
            self._coordinator,
            who,
            wanted,
            lambda key: highest_epoch(layout, key) or 0,
            waiting,
            lambda: self._cancelled == asked.invocation,
            time.monotonic() + spec.timeout_s,
        )
        with leases:
            self._leases = leases
            self._known(asked).waited_s += leases.waited_s
            try:
                yield leases
            finally:
                self._leases = None

    def _waiting_here(self, asked: Asked, path: str, holder: LockHolder | None, waited: float) -> None:
        held = holder.held_for() if holder else waited
        self._say_waiting(asked, path, str(holder or "somebody who has not signed it"), held)

    def _say_waiting(self, asked: Asked, what: str, holder: str, held_for_s: float) -> None:
        slug = model_slug(asked.resolved.spec.model)
        fields = {"slug": slug, "held_for_s": round(held_for_s, 1), "holder": holder, "message": what}
        self._emit(asked, event("ensure", Phase.WAIT_LOCK, hint=lock_of(Path(what)), **fields))

    def _layout(self, asked: Asked) -> Layout:
        roots = choose_roots(dict(os.environ), asked.profiles_root, asked.telemetry_root)
        return Layout(roots.profiles, roots.telemetry, self._node.host)

    def _request(self, asked: Asked, node: NodeBlock) -> NodeRequest:
        layout = self._layout(asked)
        return asked.to(node, str(layout.profiles), str(layout.telemetry))

    def _environ(self, visible: str | None) -> dict[str, str]:
        """Ray blanks CUDA_VISIBLE_DEVICES for an actor without GPUs, or leaves it as it is, by its version."""
        environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        return environ if visible is None else {**environ, "CUDA_VISIBLE_DEVICES": visible}

    def _keep_snapshot(self, asked: Asked, survey: Survey) -> None:
        known = self._known(asked)
        if known.before is not None:
            return
        wanted = WantedSnapshot(survey.model.slug, survey.model.digest, survey.identity.tp)
        known.before = take_snapshot(survey.layout, read_contents(survey.layout), survey.signature, wanted)
        self._coordinator.snapshot.remote(asked.run_id, self._node.host, known.before)

    def _known(self, asked: Asked) -> _Invocation:
        if self._invocation.name != asked.invocation:
            self._invocation = _Invocation(asked.invocation)
        return self._invocation

    def _emit(self, asked: Asked, each: Event) -> None:
        if self._reporter is None or self._reporter.run_id != asked.run_id:
            self._reporter = Reporter(self._coordinator, asked.run_id, self._node.host, asked.gather_s)
        self._reporter.say(each)
        if each.phase is Phase.END and each.name in _STEPS:  # which the driver must not hear of first
            self._reporter.flush()
