"""Looks at this host and decides what each stage will do. Fast: no torch, no Ray, nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rayprep.base.errors import HostUnfit
from rayprep.host.environment import compiler_settings
from rayprep.host.gpu import Gpu, GpuInventory, read_gpus, visible_gpus
from rayprep.host.layout import Layout
from rayprep.host.means import read_means
from rayprep.host.model_files import ModelFiles, find_model
from rayprep.host.rehearsal import read_facts
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.completion import Check, CheckState, Completion, Identity, best, cache_key, check_completion
from rayprep.model.fleet.parts import Part, part_name
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
from rayprep.model.signature import Signature, differences
from rayprep.model.slices import count_slices, deal
from rayprep.model.spec import DeviceChoice, PrepSpec, StageOp, check_against_model
from rayprep.model.stages import StageName
from rayprep.node.moe_state import is_tried, served_with_others, withdrawn
from rayprep.node.request import NodeRequest
from rayprep.sglang.command import request_of
from rayprep.sglang.flags import kernel_flags
from rayprep.sglang.torch_compile import without
from rayprep.stages import BY_NAME, StageRequest
from rayprep.stages.serve.stage import serve_follows
from rayprep.store.completions import of_identity, read_completions
from rayprep.store.snapshot import Inventory, known_wrong, take_inventory


@dataclass(frozen=True)
class Survey:
    """One look at one host for one request."""

    layout: Layout
    model: ModelFiles
    identity: Identity
    signature: Signature
    """With slug and TP filled in."""
    seen_gpus: GpuInventory
    """What NVML showed, or was said to."""
    request: StageRequest
    inventory: Inventory
    plan: Plan
    completions: Mapping[StageName, Completion]
    """Of exactly this request and kind of host, where there is one that can be read."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Those that this run may use; none where it runs on the CPU."""
        return self.seen_gpus.gpus if self.signature.gpu_count else ()

    @property
    def slices(self) -> tuple[tuple[Gpu, ...], ...]:
        """Those of each server of the proof; every other server has the first slice."""
        spec = self.request.spec
        return deal(self.gpus, spec.tp, _slice_count(spec, self.signature))


def take_survey(request: NodeRequest, environ: Mapping[str, str], gpus: GpuInventory | None = None) -> Survey:
    """Reads the model, the host and the caches, and decides.

    Raises:
        BadRequest: the model cannot be read, or does not go with the request.
        HostUnfit: the host has not the GPUs that the request and its slices need, or just a proof is asked for and
            there is no GPU.
    """
    spec, layout = request.resolved.spec, request.layout
    model = find_model(spec.model, environ)
    if request.verify_only:
        spec = _recalled(spec, layout, model)
    check_against_model(spec, model.architecture)
    facts = read_facts(environ)
    inventory_of_gpus = visible_gpus(gpus or (facts.inventory if facts else read_gpus()), environ)
    device = choose_device(spec.device, inventory_of_gpus, spec.tp)
    if request.verify_only and device is DeviceChoice.CPU:
        raise HostUnfit("a proof needs a GPU: without one no server starts", hint="run it on a host with a GPU")
    signature = read_signature(layout, environ, device, inventory_of_gpus).model_copy(
        update={"model_slug": model.slug, "tp_size": spec.tp}
    )
    signature = facts.on(signature) if facts else signature
    stage_request = StageRequest(
        spec=spec, model=model, device=device, signature=signature, means=read_means(environ, spec.moe_tuner_script)
    )
    identity = Identity(
        model_slug=model.slug,
        config_digest=model.digest,
        tp=spec.tp,
        server_flags=kernel_flags(spec.server_args),
        compiler_settings=compiler_settings(environ),
        part=part_name(request.part) if request.part else "",
    )
    inventory = take_inventory(layout, model.slug, spec.tp)
    decider = _Decider(spec, layout, identity, stage_request, inventory, request.part, request.deep)
    return Survey(
        layout=layout,
        model=model,
        identity=identity,
        signature=signature,
        seen_gpus=inventory_of_gpus,
        request=stage_request,
        inventory=inventory,
        plan=decider.plan(verify_only=request.verify_only),
        completions={stage: found for stage in StageName if (found := decider.exact(stage))},
    )


def _recalled(spec: PrepSpec, layout: Layout, model: ModelFiles) -> PrepSpec:
    """With the server command that the last `ensure` for this model was given, where this request names no flags."""
    if spec.server_command or spec.server_args:
        return spec
    found, _ = read_completions(layout, StageName.SERVE, model.slug, spec.tp)
    ours = [each for each in found if each.identity.config_digest == model.digest and each.server_command]
    command = max(ours, key=lambda each: each.finished_at).server_command if ours else ()
    if not command:
        return spec
    # A key that was blotted out serves as well as the real one: the server is ours to ask.
    flags = request_of(command).get("server_args", ())
    own = command if spec.slices == 1 else ()  # it has one port
    return spec.model_copy(update={"server_command": own, "server_args": flags})


def _slice_count(spec: PrepSpec, signature: Signature) -> int:
    """Raises HostUnfit where the host has fewer than asked."""
    return count_slices(spec.slices, spec.tp, signature.gpu_count) if signature.gpu_count else 1


def exact_completions(survey: Survey) -> dict[StageName, Completion]:
    """The completions of this request as they are on disk now."""
    slug, tp = survey.model.slug, survey.identity.tp
    found = {stage: read_completions(survey.layout, stage, slug, tp)[0] for stage in StageName}
    own = {stage: own_completion(each, survey.identity, survey.signature) for stage, each in found.items()}
    return {stage: each for stage, each in own.items() if each}


def own_completion(found: Sequence[Completion], identity: Identity, now: Signature) -> Completion | None:
    """That of a request on a host with signature `now`; `found` are of one stage.

    There is one under its key, or none. A host without nvcc keeps what it received under the key of who built it,
    perhaps beside a note of its own that there is nothing to build.
    """
    fits = [each for each in of_identity(list(found), identity) if not differences(each.stage, each.signature, now)]
    return max(fits, key=lambda each: each.outcome == "built", default=None)


@dataclass(frozen=True)
class _Decider:
    spec: PrepSpec
    layout: Layout
    identity: Identity
    request: StageRequest
    inventory: Inventory
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
            slices=_slice_count(self.spec, self.request.signature),
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
                plan = with_missed(plan, of_identity(self.inventory.completions[stage], self.identity))
            if stage is not StageName.MOE_TUNE:  # which leaves one small file, whatever it needs while it tunes
                plan = calibrate(plan, self.inventory.completions[stage])
            plan = only(plan, self.part[stage]) if stage in self.part else plan
            if self.spec.op(stage) is not StageOp.REBUILD:
                plan = known_unable(plan, self.exact(stage), self.request.signature) or plan
                plan = (withdrawn(self.layout, request) if stage is StageName.MOE_TUNE else None) or plan
        return plan

    def key(self, stage: StageName) -> str:
        return cache_key(stage, self.identity, self.request.signature)

    def exact(self, stage: StageName) -> Completion | None:
        return own_completion(self.inventory.completions[stage], self.identity, self.request.signature)

    def _check(self, stage: StageName, plan: StagePlan) -> Check:
        if marker := self.inventory.markers.get((self.identity.model_slug, stage)):
            return Check(state=CheckState.IN_PROGRESS, detail=marker.owner)
        units = () if isinstance(plan, NotNeeded) else plan.units
        checks = [
            self._check_one(each, units)
            for each in of_identity(self.inventory.completions[stage], self.identity)
            # "Nothing to build here" says nothing to a request that does have something to build.
            if each.outcome == "built" or not units
        ]
        if not checks and (bad := self.inventory.unreadable[stage]):
            return Check(state=CheckState.UNREADABLE, detail=f"{bad[0].path}: {bad[0].why}")
        return best(checks)

    def _check_one(self, completion: Completion, units: tuple[str, ...]) -> Check:
        changed = self.inventory.changed(completion.stage)
        wrong = known_wrong(self.layout.profiles, completion, changed, deep=self.deep)
        files = self.inventory.files(completion.stage)
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
