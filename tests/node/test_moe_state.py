"""Whether a MoE config that is here may be before servers."""

import pytest

from rayprep.model.tuning import Tuning
from rayprep.node.moe_state import is_tried
from rayprep.stages.moe_tune.search import TUNER_VERSION


def tuning(version: str | None, gpus: int) -> Tuning:
    return Tuning(tuner_version=version, strategy="auto", grid="g", dtype="fp8", seed=None, sizes=(), gpus=gpus)


@pytest.mark.parametrize(
    ("known", "tried"),
    [
        (None, True),  # nothing was tuned
        (tuning(TUNER_VERSION, 1), True),
        (tuning(None, 2), True),  # a script's file, which our tuner has tried
        (tuning(None, 0), False),  # an earlier rayprep took a script's file as it was
        (tuning("4", 1), False),
        (tuning(TUNER_VERSION, 0), False),
    ],
)
def test_only_what_was_launched_entry_by_entry_is_believed(known: Tuning | None, tried: bool) -> None:
    assert is_tried(known) is tried
