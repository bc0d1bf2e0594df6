"""What each stage will do and why: pure decisions over a request, a host's signature and what lies there."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from rayprep.base.errors import ErrorType
from rayprep.base.records import Record, counted
from rayprep.base.secrets import redacted_command
from rayprep.model.completion import Check, Completion
from rayprep.model.proof import STANDS, Verification
from rayprep.model.signature import Signature, differences
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName

ListedBy = Literal["sglang", "tables", "server"]
"""Source of a stage's units: the installed SGLang, rayprep's tables, or nobody before a server runs."""


class Work(Record):
    """What a stage would build, listed without building it."""

    units: tuple[str, ...]
    required_bytes: int
    """Of disk, for all units."""
    estimate: str
    """How `required_bytes` and `seconds` were come by, for people."""
    seconds: float
    memory_bytes: int = 0
    batch_sizes: tuple[int, ...] = ()
    """What it is built for, where that is not the request's own."""
    listed_by: ListedBy | None = None
    """Null where the units do not depend on what the model is made of."""
    left: str = ""
    """Why nobody does, where it is a server that finds out."""
    by_sglang: bool = False
    """SGLang itself does it, in its server or its tuner, for a stage other than `serve`. It then compiles what `serve`
    answers for as well, and leaves half of it when it is killed."""


class NotNeeded(Record):
    """There is rightly nothing to build on this host for this model."""

    reason: str
    detail: str = ""


class Unable(Record):
    """The stage has work here that it cannot do; it ends as an error, not as a skip."""

    error_type: ErrorType
    message: str
    units: tuple[str, ...] = ()
    """What it would build, where that is known: a host that has all of it from elsewhere needs no compiler."""
    hint: str = ""
    """What to do, where the error type's own hint would mislead."""


StagePlan = Work | NotNeeded | Unable


def with_missed(work: Work, earlier: Sequence[Completion]) -> Work:
    """`work` with what a server once asked for beyond the plan, for the same model and flags on whatever host."""
    missed = {unit for each in earlier for unit in each.missed} - set(work.units)
    return work.model_copy(update={"units": (*work.units, *sorted(missed))})


def only(work: Work, units: Sequence[str]) -> Work:
    """`work` for those of its units that are among `units`."""
    kept = tuple(unit for unit in work.units if unit in units)
    share = len(kept) / max(len(work.units), 1)
    changed = {
        "units": kept,
        "required_bytes": int(work.required_bytes * share),
        "seconds": work.seconds * share,
        "estimate": f"{len(kept)} of {len(work.units)} units: {work.estimate}",
    }
    return work.model_copy(update=changed)


def calibrate(work: Work, earlier: Sequence[Completion]) -> Work:
    """`work` with its cost reckoned from what earlier completions of the stage took, where there are any.

    Time is the mean of a unit, disk the largest, since too little disk fails a run and too much time fails nothing.
    """
    measured = [each for each in earlier if each.units and each.artifacts and each.duration_s > 0]
    if not measured:
        return work
    count = len(work.units)
    builds = counted(len(measured), "earlier build")
    units = sum(len(each.units) for each in measured)
    seconds = sum(each.duration_s for each in measured) / units
    largest = max(sum(size for size, _ in each.artifacts.values()) // len(each.units) for each in measured)
    return work.model_copy(
        update={
            "required_bytes": max(largest, 1) * count,
            "seconds": seconds * count,
            "estimate": f"{counted(count, 'unit')}, as {builds} of this model here took for each",
        }
    )


def known_unable(work: Work, earlier: Completion | None, now: Signature) -> Unable | None:
    """Why `work` is not tried again: all or a part of it was, and failed as it would today.

    It was a server that failed, so what binds one decides whether anything has changed since.
    """
    if earlier is None or earlier.outcome != "unsupported":
        return None
    if not any(set(tried) <= set(work.units) for tried in (*earlier.tried, earlier.units)):
        return None
    if differences(StageName.SERVE, earlier.signature, now):
        return None
    since = f"known since {earlier.finished_at}, --rebuild {earlier.stage} tries it again"
    # Not --skip: the flags would still be there, and the warm-up server would not start with them either.
    hint = "leave the named flag out; what the others compile is warmed up and proved all the same"
    return Unable(error_type=ErrorType.UNSUPPORTED, message=f"{earlier.reason}; {since}", hint=hint)


class Action(StrEnum):
    BUILD = "build"
    NOOP = "noop"
    SKIP = "skip"
    FAIL = "fail"


class Decision(Record):
    """One stage's part of the plan, with the reason."""

    stage: StageName
    action: Action
    reason: str
    detail: str = ""
    key: str
    check: Check
    work: Work | None = None
    error_type: ErrorType | None = None
    hint: str = ""
    """With an error type, where its own hint would mislead."""
    record_skip: bool = False
    """The skip is the host's or the model's, not the user's: it is kept as a completion."""

    def __str__(self) -> str:
        cost = ""
        if self.action is Action.BUILD and self.work:
            mib = self.work.required_bytes / 2**20
            cost = f": {len(self.work.units)} to build, about {self.work.seconds:.0f} s and {mib:.0f} MiB"
            cost += f" ({self.work.estimate})"
            cost += f"; left to the server: {self.work.left}" if self.work.left else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.stage}: {self.action}, {self.reason}{detail}{cost}"


def decide(  # noqa: PLR0911 - one return for each rule, in order of precedence
    stage: StageName, op: StageOp, selected: bool, plan: StagePlan, check: Check, key: str
) -> Decision:
    """The rules, first that fits: not selected, told to skip, not needed, unable, rebuild, valid, build."""

    def verdict(action: Action, reason: str, detail: str = "") -> Decision:
        work = plan if isinstance(plan, Work) else None
        return Decision(stage=stage, action=action, reason=reason, detail=detail, key=key, check=check, work=work)

    if not selected:
        return verdict(Action.SKIP, "not_selected")
    if op is StageOp.SKIP:
        return verdict(Action.SKIP, "requested")
    if isinstance(plan, NotNeeded):
        return verdict(Action.SKIP, plan.reason, plan.detail).model_copy(update={"record_skip": True})
    if isinstance(plan, Unable) and not (plan.units and check.valid and op is not StageOp.REBUILD):
        failed = verdict(Action.FAIL, plan.error_type.value, plan.message)
        return failed.model_copy(update={"error_type": plan.error_type, "hint": plan.hint})
    if op is StageOp.REBUILD:
        return verdict(Action.BUILD, "rebuild_requested")
    if check.valid:
        return verdict(Action.NOOP, "valid_signature", check.detail)
    return verdict(Action.BUILD, check.state.value, check.detail)


def with_consequences(decisions: Sequence[Decision], *, unheard: bool = False) -> tuple[Decision, ...]:
    """What one stage builds can be more for a server to compile, so that `serve` starts one again.

    With another MoE config it compiles other kernels; and it is its log that says whether the config is used. Graphs
    that are new leave kernels which only the next start tunes for good.

    Args:
        unheard: no server has said yet that it uses the MoE config that is here.
    """
    reasons = [reason for each in decisions if (reason := _more_to_serve(each, unheard=unheard))]
    again = {"action": Action.BUILD, "reason": reasons[0], "detail": ""} if reasons else {}
    return tuple(
        each.model_copy(update=again)
        if each.stage is StageName.SERVE and each.action is Action.NOOP and each.work
        else each
        for each in decisions
    )


def _more_to_serve(decision: Decision, *, unheard: bool) -> str:
    if unheard and decision.stage is StageName.MOE_TUNE and decision.action is Action.NOOP:
        return "moe_config_is_unheard"
    if decision.action is not Action.BUILD:
        return ""
    if decision.stage is StageName.MOE_TUNE:
        return "moe_config_is_new"
    by_a_server = decision.work is not None and decision.work.by_sglang
    return "graphs_are_new" if decision.stage is StageName.INDUCTOR and by_a_server else ""


def is_served_without(stage: StageName, error_type: ErrorType | None) -> bool:
    """Whether rayprep's own servers leave out what this stage failed at, so that the rest can be warmed up and proved.

    That is torch.compile, with which some models start no server at all.
    """
    return stage is StageName.INDUCTOR and error_type is ErrorType.UNSUPPORTED


def prevents_proof(stage: StageName, error_type: ErrorType | None, command: Sequence[str]) -> bool:
    """Whether there is nothing to prove after this stage has failed.

    Args:
        command: the user's own server, if any: it leaves nothing out but what is not there any more.
    """
    return error_type is not ErrorType.WITHDRAWN and (bool(command) or not is_served_without(stage, error_type))


class VerifyDecision(Record):
    """Whether a server is started to prove that nothing is left to compile, and why or why not."""

    run: bool
    reason: str

    def __str__(self) -> str:
        return f"verify: {'run' if self.run else 'skip'}, {self.reason}"


def decide_verify(
    decisions: Sequence[Decision],
    *,
    asked: bool,
    verify_only: bool,
    on_gpu: bool,
    command: tuple[str, ...],
    slices: int,
    proof: Verification | None,
) -> VerifyDecision:
    """The rules, first that fits. A proof stands until something is built, or until it is asked of
    another command or of more servers at once."""
    serve = next(each for each in decisions if each.stage is StageName.SERVE)
    failing = [
        each.stage
        for each in decisions
        if each.action is Action.FAIL and prevents_proof(each.stage, each.error_type, command)
    ]
    rules = (
        (not on_gpu, False, "no_gpu"),
        (not asked, False, "requested"),
        (verify_only, True, "requested"),
        (serve.action not in (Action.BUILD, Action.NOOP), False, f"serve_{serve.reason}"),
        (bool(failing), False, f"{''.join(failing[:1])}_failed"),
        (any(each.action is Action.BUILD for each in decisions), True, "something_is_built"),
        (proof is None, True, "not_verified_yet"),
        (proof is not None and proof.slices < slices, True, "more_slices"),
        (proof is not None and redacted_command(command) not in ((), proof.command), True, "another_server_command"),
    )
    run, reason = next(((run, reason) for fits, run, reason in rules if fits), (False, STANDS))
    return VerifyDecision(run=run, reason=reason)


class Plan(Record):
    """The decisions for one host, in the order of the stages."""

    decisions: tuple[Decision, ...]
    verify: VerifyDecision
    served_without: bool = False
    """rayprep's own servers leave torch.compile out, with which it is known that none starts."""

    @property
    def needs_work(self) -> bool:
        return self.verify.run or any(each.action is Action.BUILD for each in self.decisions)


class Wave(Record):
    """Stages that are started together, once nothing runs any more but what may go on `beside` them."""

    stages: tuple[StageName, ...]
    beside: tuple[StageName, ...] = ()


_ON_THE_CPU = (StageName.DEEP_GEMM, StageName.FLASHINFER)


def waves(building: Sequence[StageName]) -> tuple[Wave, ...]:
    """In which order the stages that build are started.

    DeepGEMM's and FlashInfer's compilers share the CPUs. All other stages use the GPU, and go one after another.
    FlashInfer's longest compilers go on beside the tuner, which measures in CUDA graphs that no busy CPU slows, and
    beside a server that is starting: it imports for half a minute before it needs a module, and then waits for the lock
    of one that is being built. TorchInductor times what it launches, so that nothing may run beside it.
    """
    compiling = tuple(stage for stage in building if stage in _ON_THE_CPU)
    others = [stage for stage in building if stage not in _ON_THE_CPU]
    beside = () if StageName.INDUCTOR in others else (StageName.FLASHINFER,)
    found = [Wave(stages=compiling), *(Wave(stages=(stage,), beside=beside) for stage in others)]
    return tuple(wave for wave in found if wave.stages)
