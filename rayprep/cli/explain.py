"""`rayprep explain`: for each stage, why it is valid or not, and what would be built."""

import json
import os

from rayprep.cli.request import Flags, Requests, node_requests
from rayprep.model.plan import Action, Decision
from rayprep.node import Survey, take_survey


def run(flags: Flags, *, json_output: bool) -> None:
    """Of a campaign, one request after another, each on the caches as they are now."""
    environ = dict(os.environ)
    requests = node_requests(flags, environ)
    surveys = [take_survey(request, environ) for request in requests.each]
    if json_output:
        print_plans(requests, surveys)
        return
    for survey in surveys:
        print(f"{survey.model.slug} at TP {survey.identity.tp}, from {survey.model.source}")
        for decision in survey.plan.decisions:
            print("\n".join(_lines(decision)))
        print(survey.plan.verify)


def print_plans(requests: Requests, surveys: list[Survey]) -> None:
    """A plan's JSON, or of a campaign a list of them."""
    plans = [survey.plan.model_dump(mode="json") for survey in surveys]
    print(json.dumps(plans if requests.campaign else plans[0], indent=2, ensure_ascii=False))


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
