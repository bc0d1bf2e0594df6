"""`rayprep explain`: for each stage, why it is valid or not, and what would be built."""

import os

from rayprep.cli.request import Flags, node_request
from rayprep.model.plan import Action, Decision
from rayprep.node import take_survey


def run(flags: Flags, *, json_output: bool) -> None:
    environ = dict(os.environ)
    survey = take_survey(node_request(flags, environ), environ)
    if json_output:
        print(survey.plan.model_dump_json(indent=2))
        return
    print(f"{survey.model.slug} at TP {survey.identity.tp}, from {survey.model.source}")
    for decision in survey.plan.decisions:
        print("\n".join(_lines(decision)))
    print(survey.plan.verify)


def _lines(decision: Decision) -> list[str]:
    lines = [str(decision)]
    for difference in decision.check.differences:
        lines.append(f"    {difference}: it binds since {difference.why}")
    for path in decision.check.damaged[:5]:
        lines.append(f"    damaged: {path}")
    if decision.action is Action.BUILD and decision.work:
        missing = decision.check.missing_units or decision.work.units
        lines += [f"    would build {unit}" for unit in missing]
    lines.append(f"    completion: {decision.key}")
    return lines
