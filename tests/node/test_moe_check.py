"""A server's log decides whether the tuned MoE config counts."""

from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.base.records import Located
from rayprep.host.layout import Layout
from rayprep.model.completion_text import parse_completion
from rayprep.model.result import Artifacts, StageResult
from rayprep.model.stages import StageName, StageStatus
from rayprep.node.moe_check import confirmed, keep_word
from rayprep.sglang.moe_config_lines import MoeConfigs
from tests.model.samples import completion

LOG = Located(container_path="/t/serve.log", host_path="/t/serve.log")
OTHER_LOG = Located(container_path="/t/verify.log", host_path="/t/verify.log")
NAME = "E=8,N=64.json"
CONFIG = Located(container_path=f"/p/{NAME}", host_path=f"/p/{NAME}")


def result(status: StageStatus = StageStatus.OK, **artifacts: object) -> StageResult:
    found = Artifacts.model_validate({"config_file": CONFIG, **artifacts})
    return StageResult(ran=True, status=status, status_code=0, duration_s=5.0, artifacts=found)


@pytest.mark.parametrize("status", [StageStatus.OK, StageStatus.NOOP])
def test_a_log_that_names_the_file_confirms_it(status: StageStatus) -> None:
    judged = confirmed(result(status), MoeConfigs(used=("E=9.json", NAME)), LOG)
    assert judged and judged.artifacts
    assert (judged.status, judged.verified_in_log, judged.artifacts.verified_in_log) == (status, True, True)
    assert judged.artifacts.verify_log == LOG


def test_a_log_that_does_not_is_an_error_with_what_it_wanted() -> None:
    judged = confirmed(result(), MoeConfigs(missed=("E=9.json",)), LOG)
    assert judged and judged.artifacts
    assert (judged.status, judged.status_code) == (StageStatus.ERROR, 11)
    assert judged.error_type is ErrorType.VERIFY_LOG_MISSING
    assert judged.errors[0].message.endswith("it looked for E=9.json")
    assert (judged.ran, judged.duration_s, judged.verified_in_log) == (True, 5.0, False)
    assert judged.artifacts.config_file == CONFIG


def test_the_word_is_kept_and_a_completion_that_was_not_borne_out_goes(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "profiles", tmp_path / "telemetry")
    done = completion(StageName.MOE_TUNE)
    kept = layout.completion(StageName.MOE_TUNE, done.key)
    for said, left in ((MoeConfigs(used=(NAME,)), True), (MoeConfigs(), False)):
        judged = confirmed(result(), said, LOG)
        assert judged
        keep_word(layout, done, judged)
        assert kept.exists() is left
        if left:
            found = parse_completion(kept.read_bytes())
            assert (found.verified_in_log, found.verify_log) == (True, LOG)
    assert judged
    keep_word(layout, None, judged)


def test_what_has_no_config_or_has_been_confirmed_is_left_alone() -> None:
    unused = MoeConfigs(used=("E=9.json",))
    assert confirmed(result(StageStatus.ERROR), unused, LOG) is None
    assert confirmed(StageResult(ran=False, status=StageStatus.SKIPPED, status_code=0), unused, LOG) is None
    for known in (None, LOG):
        earlier = result(verified_in_log=True, verify_log=known)
        assert confirmed(earlier, unused, OTHER_LOG) is None, "an earlier server's word stands"
    assert confirmed(earlier, MoeConfigs(used=(NAME,)), OTHER_LOG) is None


def test_a_log_takes_the_place_of_one_that_is_not_here() -> None:
    judged = confirmed(result(StageStatus.NOOP, verified_in_log=True), MoeConfigs(used=(NAME,)), LOG)
    assert judged and judged.artifacts
    assert (judged.status, judged.verified_in_log, judged.artifacts.verify_log) == (StageStatus.NOOP, True, LOG)
