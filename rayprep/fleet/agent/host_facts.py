"""What a host tells the fleet of a look at itself."""

from rayprep.model.fleet.grouping import HostFacts, StageStanding, Standing
from rayprep.model.plan import Action, Decision
from rayprep.model.stages import StageName
from rayprep.node import Survey
from rayprep.node.survey import exact_completions
from rayprep.store.store_id import store_id

_STANDING = {Action.NOOP: Standing.VALID, Action.BUILD: Standing.MISSING, Action.FAIL: Standing.UNABLE}


def facts_of(survey: Survey, host: str) -> HostFacts:
    """What grouping and moves decide by. Gives the store its nonce where it has none."""
    stages = {each.stage: _stage_facts(survey, each) for each in survey.plan.decisions if each.action in _STANDING}
    return HostFacts(host=host, store=store_id(survey.layout), signature=survey.signature, stages=stages)


def _stage_facts(survey: Survey, decision: Decision) -> StageStanding:
    work = decision.work if decision.action is Action.BUILD else None
    return StageStanding(
        key=_key(survey, decision),
        standing=_STANDING[decision.action],
        units=work.units if work else (),
        seconds=work.seconds if work else 0.0,
    )


def _key(survey: Survey, decision: Decision) -> str:
    """Under which it is here, or would be built: a host without nvcc has what others built, under their key."""
    there = survey.completions.get(decision.stage) if decision.action is Action.NOOP else None
    return there.key if there else decision.key


def extras_of(survey: Survey) -> dict[StageName, str]:
    """What a server used of stages that the plan skips, as `node.adopt` keeps it; read from disk now."""
    skipped = {each.stage for each in survey.plan.decisions if each.action is Action.SKIP}
    found = exact_completions(survey)
    return {stage: each.key for stage, each in found.items() if stage in skipped and each.outcome == "built"}
