"""What each stage is to do on this host, and why: its plan held against what lies in the store."""

from dataclasses import dataclass
from functools import cached_property

from rayprep.host.layout import Layout
from rayprep.model.completion import Check, CheckState, Completion, Identity, best, cache_key, check_completion
from rayprep.model.fleet.parts import Part
from rayprep.model.plan import (
    Decision,
    NotNeeded,
    Plan,
    StagePlan,
    Unable,
    Work,
    calibrate,
    decide,
    decide_verify,
    is_served_without,
    known_unable,
    only,
    with_consequences,
    with_missed,
)
from rayprep.model.signature import Signature
from rayprep.model.slices import count_slices
from rayprep.model.spec import DeviceChoice, PrepSpec, StageOp
from rayprep.model.stages import StageName
from rayprep.node.moe_state import is_tried, served_with_others, withdrawn
from rayprep.sglang.torch_compile import without
from rayprep.stages.protocol import StageRequest
from rayprep.stages.serve.stage import serve_follows
from rayprep.stages.table import BY_NAME
from rayprep.store.completions import of_identity, own_completion
from rayprep.store.snapshot import StoreContents, known_wrong


def slice_count(spec: PrepSpec, signature: Signature) -> int:
    """Raises HostUnfit where the host has fewer than asked."""
    return count_slices(spec.slices, spec.tp, signature.gpu_count) if signature.gpu_count else 1


@dataclass(frozen=True)
class Decider:
    """Holds every stage's plan against the store, for one request."""

    spec: PrepSpec
    layout: Layout
    identity: Identity
    request: StageRequest
    contents: StoreContents
    part: Part
    deep: bool

    def plan(self, *, verify_only: bool) -> Plan:
        decisions = with_consequences(
            [self.decide(stage, selected=not verify_only) for stage in StageName],
            unheard=self._is_unheard(self.exact(StageName.MOE_TUNE)),
        )
        served = self.exact(StageName.SERVE)
        verify = decide_verify(
            decisions,
            asked=verify_only or self.spec.verify,
            verify_only=verify_only,
            on_gpu=self.request.device is DeviceChoice.CUDA,
            command=self.spec.server_command,
            slices=slice_count(self.spec, self.request.signature),
            proof=served.verification if served else None,
        )
        return Plan(decisions=decisions, verify=verify, served_without=self._served_without)

    def decide(self, stage: StageName, *, selected: bool = True) -> Decision:
        plan = self._plan(stage)
        selected = selected and stage in (self.part or self.spec.selected)
        return decide(stage, self.spec.op(stage), selected, plan, self._check(stage, plan), self.key(stage))

    @cached_property
    def _served_without(self) -> bool:
        """Whether it is known that no server starts with torch.compile. Who leaves the stage out has it tried again."""
        stage = StageName.INDUCTOR
        if stage not in (self.part or self.spec.selected) or self.spec.op(stage) is StageOp.SKIP:
            return False
        plan = self._plan(stage)
        return isinstance(plan, Unable) and is_served_without(stage, plan.error_type)

    def _is_unheard(self, completion: Completion | None) -> bool:
        """A config that was tuned, and of which no server has spoken yet."""
        return completion is not None and bool(completion.artifacts) and not completion.verified_in_log

    def _plan(self, stage: StageName) -> StagePlan:
        request = self.request
        if stage is StageName.SERVE and self._served_without:
            request = request.with_server_args(without(self.spec.server_args))
        plan: StagePlan = BY_NAME[stage].plan(request)
        if isinstance(plan, Work):
            if stage is StageName.DEEP_GEMM:  # whose units can be built by name alone
                plan = with_missed(plan, of_identity(self.contents.completions[stage], self.identity))
            if stage is not StageName.MOE_TUNE:  # which leaves one small file, whatever it needs while it tunes
                plan = calibrate(plan, self.contents.completions[stage])
            plan = only(plan, self.part[stage]) if stage in self.part else plan
            if self.spec.op(stage) is not StageOp.REBUILD:
                plan = known_unable(plan, self.exact(stage), self.request.signature) or plan
                plan = (withdrawn(self.layout, request) if stage is StageName.MOE_TUNE else None) or plan
        return plan

    def key(self, stage: StageName) -> str:
        return cache_key(stage, self.identity, self.request.signature)

    def exact(self, stage: StageName) -> Completion | None:
        return own_completion(self.contents.completions[stage], self.identity, self.request.signature)

    def _check(self, stage: StageName, plan: StagePlan) -> Check:
        if marker := self.contents.markers.get((self.identity.model_slug, stage)):
            return Check(state=CheckState.IN_PROGRESS, detail=marker.owner)
        units = () if isinstance(plan, NotNeeded) else plan.units
        checks = [
            self._check_one(each, units)
            for each in of_identity(self.contents.completions[stage], self.identity)
            # "Nothing to build here" says nothing to a request that does have something to build.
            if each.outcome == "built" or not units
        ]
        if not checks and (bad := self.contents.unreadable[stage]):
            return Check(state=CheckState.UNREADABLE, detail=f"{bad[0].path}: {bad[0].why}")
        return best(checks)

    def _check_one(self, completion: Completion, units: tuple[str, ...]) -> Check:
        changed = self.contents.changed(completion.stage)
        wrong = known_wrong(self.layout.profiles, completion, changed, deep=self.deep)
        files = self.contents.files(completion.stage)
        check = check_completion(completion, self.request.signature, files, units, wrong)
        return (self._of_moe(completion) or check) if check.valid else check

    def _of_moe(self, completion: Completion) -> Check | None:
        """Why a completion is not enough that holds by itself: for the MoE config that a server reads."""
        if completion.stage is StageName.SERVE:
            return served_with_others(self.layout, completion)
        if completion.stage is not StageName.MOE_TUNE:
            return None
        if not is_tried(completion.tuning):
            return Check(state=CheckState.NOT_COVERED, detail="nobody has tried whether a server can launch each entry")
        if not self._is_unheard(completion) or serve_follows(self.spec):
            return None
        return Check(state=CheckState.NOT_COVERED, detail="no server has said yet that it uses the config")
