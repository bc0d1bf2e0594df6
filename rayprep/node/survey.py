"""Looks at this host and decides what each stage will do. Fast: no torch, no Ray, nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass

from rayprep.base.errors import HostUnfit
from rayprep.host.environment import compiler_settings
from rayprep.host.gpu import Gpu, GpuInventory, read_gpus, visible_gpus
from rayprep.host.layout import Layout
from rayprep.host.means import read_means
from rayprep.host.model_files import ModelFiles, find_model
from rayprep.host.rehearsal import read_facts
from rayprep.host.this_host import choose_device, read_signature
from rayprep.model.completion import Completion, Identity, kept_answer
from rayprep.model.fleet.parts import part_name
from rayprep.model.plan import (
    Plan,
)
from rayprep.model.signature import Signature, answer_kind
from rayprep.model.slices import deal
from rayprep.model.spec import DeviceChoice, PrepSpec, check_against_model
from rayprep.model.stages import StageName
from rayprep.node.decider import Decider, slice_count
from rayprep.node.request import NodeRequest
from rayprep.sglang.command import request_of
from rayprep.sglang.flags import kernel_flags
from rayprep.stages.protocol import StageRequest
from rayprep.store.completions import own_completion, read_completions
from rayprep.store.snapshot import StoreContents, read_contents


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
    contents: StoreContents
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
        return deal(self.gpus, spec.tp, slice_count(spec, self.signature))


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
    identity = Identity(
        model_slug=model.slug,
        config_digest=model.digest,
        tp=spec.tp,
        server_flags=kernel_flags(spec.server_args),
        compiler_settings=compiler_settings(environ),
        part=part_name(request.part) if request.part else "",
    )
    contents = read_contents(layout, model.slug, spec.tp)
    every = [completion for completions in contents.completions.values() for completion in completions]
    stage_request = StageRequest(
        spec=spec,
        model=model,
        device=device,
        signature=signature,
        means=read_means(environ, spec.moe_tuner_script),
        answer=request.answers.get(answer_kind(signature)) or kept_answer(every, identity, signature, environ),
    )
    decider = Decider(spec, layout, identity, stage_request, contents, request.part, request.deep)
    return Survey(
        layout=layout,
        model=model,
        identity=identity,
        signature=signature,
        seen_gpus=inventory_of_gpus,
        request=stage_request,
        contents=contents,
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


def exact_completions(survey: Survey) -> dict[StageName, Completion]:
    """The completions of this request as they are on disk now."""
    slug, tp = survey.model.slug, survey.identity.tp
    found = {stage: read_completions(survey.layout, stage, slug, tp)[0] for stage in StageName}
    own = {stage: own_completion(each, survey.identity, survey.signature) for stage, each in found.items()}
    return {stage: each for stage, each in own.items() if each}
