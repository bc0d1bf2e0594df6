"""The installed SGLang, asked by a run: what comes of its answer, of its refusal, and of none."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rayprep.base.errors import Interrupted
from rayprep.base.sealed import seal
from rayprep.model.completion import Completion
from rayprep.model.completion_text import completion_text, parse_completion
from rayprep.model.plan import Unable, Work
from rayprep.model.result import PrepResult, RunStatus
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName
from rayprep.node import NodeRequest, Survey, ensure, take_survey
from rayprep.node.inventory import Asking, ask, can_be_asked, may_ask
from rayprep.sglang.inventory import Answer, Inventory, Refusal, Unasked
from rayprep.stages.table import BY_NAME
from rayprep.store.completions import read_completions
from tests.needs import needs_torch
from tests.node.serving import FAKES, Host, played
from tests.processes import family, wait_for

pytestmark = needs_torch()

ASKED = FAKES / "asked_lib"
MODEL = {
    **{"architectures": ["PlayedForCausalLM"], "model_type": "played", "torch_dtype": "bfloat16"},
    **{"hidden_size": 256, "moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
"""A family that no table has."""
PRODUCT = "GEMM_NT_F8F8BF16 N=768 K=256 groups=1"
DEEP_GEMM, MOE, SERVE = StageName.DEEP_GEMM, StageName.MOE_TUNE, StageName.SERVE


class AskingHost(Host):
    """A host whose SGLang can be asked. ASKED must be on sys.path."""

    @property
    def environ(self) -> dict[str, str]:
        before = super().environ
        return {**before, "PYTHONPATH": os.pathsep.join([str(ASKED), before["PYTHONPATH"]])}

    def model(self, **changes: object) -> str:
        folder = self.base / "played"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**MODEL, **changes}), encoding="utf-8")
        return str(folder)

    def surveyed(self, request: NodeRequest, environ: Mapping[str, str] | None = None) -> Survey:
        return take_survey(request, environ or self.environ, gpus=self.gpus)

    def run(
        self, *skipped: StageName, server_args: tuple[str, ...] = (), **changes: object
    ) -> tuple[PrepResult, Answer]:
        """A run that asks first, as a command does."""
        self.runs += 1
        ops = dict.fromkeys((StageName.FLASHINFER, *skipped), StageOp.SKIP)
        request = self.request(model=self.model(**changes), ops=ops)
        survey = self.surveyed(request)
        assert may_ask(survey)
        answer = ask(survey, request, self.environ, lambda: False)
        request = request.answered(survey.signature, answer)
        return ensure(request, self.environ, self.events.append, survey=self.surveyed(request)), answer


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AskingHost]:
    yield from played(AskingHost(tmp_path), monkeypatch, ASKED)


def completions(host: Host) -> dict[StageName, Completion]:
    return {stage: found[0] for stage in StageName if (found := read_completions(host.layout, stage)[0])}


def units(survey: Survey, stage: StageName) -> tuple[str, ...]:
    """What it would build, whether or not this host has the tools."""
    plan = BY_NAME[stage].plan(survey.request)
    assert isinstance(plan, Work | Unable)
    return plan.units


def test_a_family_that_no_table_has_is_planned_by_sglangs_word(host: AskingHost) -> None:
    request = host.request(model=host.model(), ops={})
    survey = host.surveyed(request)
    before = {decision.stage: decision for decision in survey.plan.decisions}
    assert units(survey, DEEP_GEMM) == ("server",)
    assert "unknown_moe_kernel (not known: the experts of PlayedForCausalLM)" in str(before[MOE])
    answer = ask(survey, request, host.environ, lambda: False)
    assert isinstance(answer, Inventory)
    told = host.surveyed(request.answered(survey.signature, answer))
    assert units(told, DEEP_GEMM) == (PRODUCT,)
    assert units(told, MOE)[0] == "auto E=9 N=64 K=256 topk=3 bfloat16 M=1"
    keys = [decision.key for decision in told.plan.decisions]
    assert keys == [decision.key for decision in before.values()], "a key says not who said it"
    assert [path.name for path in host.layout.profiles.iterdir()] == [], "asking writes nothing there"
    assert "a word of SGLang's own" in (host.layout.run(request.run_id) / "inventory.log").read_text()


def test_an_answer_is_kept_and_nobody_is_asked_again(host: AskingHost) -> None:
    result, answer = host.run(DEEP_GEMM, MOE)
    assert result.status is RunStatus.OK
    kept = completions(host)[SERVE].inventory
    assert kept == answer
    ops = dict.fromkeys((StageName.FLASHINFER, DEEP_GEMM, MOE), StageOp.SKIP)
    again = host.surveyed(host.request(model=host.model(), ops=ops))
    assert (again.plan.needs_work, again.request.answer, may_ask(again)) == (False, answer, False)
    more = host.surveyed(host.request(model=host.model(), ops={**ops, SERVE: StageOp.REBUILD}))
    assert (more.plan.needs_work, may_ask(more)) == (True, False), "there is work, and its plan is known"
    other = host.surveyed(host.request("--attention-backend=triton", model=host.model(), ops=ops))
    assert may_ask(other), "another server"
    rebuilt = host.request(model=host.model(), ops={**ops, SERVE: StageOp.REBUILD})
    changed = host.surveyed(rebuilt, {**host.environ, "SGLANG_FORCE_FP8_MARLIN": "1"})
    assert may_ask(changed), "SGLang's own variables change what it says"
    assert not may_ask(host.surveyed(rebuilt, {**host.environ, "SGLANG_CACHE_DIR": "/c"}))


def test_a_completion_from_before_there_were_answers_is_as_good_as_it_was(host: AskingHost) -> None:
    host.run(DEEP_GEMM, MOE)
    kept = completions(host)[SERVE]
    text = json.loads(completion_text(kept))
    del text["inventory"], text["checksum"]
    older = parse_completion(seal(json.dumps(text)).encode())
    assert older == kept.model_copy(update={"inventory": None})


def test_a_release_that_nobody_has_seen_is_named_once(host: AskingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's metadata are made a newer one's."""
    newer = host.base / "newer"
    shutil.copytree(ASKED, newer)
    metadata = next(newer.glob("*.dist-info"))
    text = (metadata / "METADATA").read_text(encoding="utf-8").replace("0.5.16", "0.6.1rc1")
    (metadata / "METADATA").write_text(text, encoding="utf-8")
    metadata.rename(newer / "sglang-0.6.1rc1.dist-info")
    monkeypatch.syspath_prepend(newer)
    result, _ = host.run(DEEP_GEMM, MOE)
    assert result.status is RunStatus.OK
    assert [warning for warning in result.warnings if "0.6.1rc1 is newer than 0.5.23" in warning] == [
        result.warnings[0]
    ]


def test_a_refusal_is_said_before_anything_is_built(host: AskingHost) -> None:
    result, answer = host.run(play="refuses")
    assert answer == Refusal(refused="a block of 128 does not divide 192")
    said = "SGLang refuses this model or its flags, and so will its server: a block of 128 does not divide 192"
    assert result.warnings[0] == said
    order = [event.message == said for event in host.events]
    assert order.index(True) < next(i for i, event in enumerate(host.events) if event.name == "serve")
    for stage in (DEEP_GEMM, MOE):
        assert result.stages[stage].reason == "refused_by_sglang"
    assert result.stages[SERVE].status.value == "ok", "it is the server that decides, and this one starts"
    assert completions(host)[SERVE].inventory is None


def test_no_answer_stops_no_run(host: AskingHost) -> None:
    result, answer = host.run(DEEP_GEMM, play="dies")
    assert isinstance(answer, Unasked)
    assert answer.unknown.startswith("it ended by status 9: see ")
    assert (result.status, result.stages[MOE].reason) == (RunStatus.OK, "unknown_moe_kernel")
    said = "SGLang could not be asked what its server needs, so rayprep's tables say it"
    assert result.warnings[0] == f"{said}: {answer.unknown}"


def test_one_that_hangs_is_ended(host: AskingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayprep.node.inventory.DEADLINE_S", 3.0)
    request = host.request(model=host.model(play="hangs"), ops={})
    survey = host.surveyed(request)
    began = time.monotonic()
    answer = ask(survey, request, host.environ, lambda: False)
    assert isinstance(answer, Unasked)
    assert answer.unknown.startswith("it did not answer within 3 s")
    assert time.monotonic() - began < 20


def test_an_interrupt_ends_it(host: AskingHost) -> None:
    request = host.request(model=host.model(play="hangs"), ops={})
    survey = host.surveyed(request)
    with Asking.of(survey, request, host.environ) as asking:
        wait_for(lambda: len(family(os.getpid())) > 2, "a guard and what it guards")
        tree = family(os.getpid())[1:]
        asked = threading.Event()
        asked.set()
        with contextlib.suppress(Interrupted):
            asking.finish(asked.is_set)
    wait_for(lambda: not any(process.is_running() for process in tree), "it to end")


def test_a_key_is_not_told(host: AskingHost) -> None:
    request = host.request("--api-key=s3cr3t-key", model=host.model(play="refuses"), ops={})
    survey = host.surveyed(request)
    ask(survey, request, host.environ, lambda: False)
    assert "s3cr3t-key" not in (host.layout.run(request.run_id) / "inventory.log").read_text()


def test_who_is_asked(host: AskingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_be_asked()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(FAKES / "sglang_lib")
        assert not can_be_asked(), "a stand-in without a loader"
