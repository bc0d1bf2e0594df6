"""The `inductor` stage on a GPU: the graphs that a server compiles as it starts, or that it does not start so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType
from rayprep.host.environment import on_every_core
from rayprep.model.result import RunStatus
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName, StageStatus
from rayprep.node.survey import take_survey
from tests.node.serving import COMPILES, LIBRARY, SERVER, SKIPPED, Host, played, statuses

ON = "--enable-torch-compile"
INDUCTOR, SERVE = StageName.INDUCTOR, StageName.SERVE


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    yield from played(Host(tmp_path), monkeypatch, LIBRARY)


def graphs(*sizes: int) -> set[str]:
    places = ("torchinductor/aotautograd/decode", "torchinductor/fxgraph/de/decode")
    return {f"{place}{size}" for size in sizes for place in places}


def test_the_graphs_of_the_batches_asked_for_and_a_hit_on_the_next_start(host: Host) -> None:
    while_it_compiles: set[str] = set()

    def look() -> bool:
        if all(event.name != "serve" for event in host.events):
            while_it_compiles.update(host.markers())
        return False

    result = host.ensure(ON, batch_sizes=[1, 8], cancelled=look)
    assert while_it_compiles == {"inductor", "serve"}, "such a server compiles what is the other stage's, too"
    assert (result.status, result.errors) == (RunStatus.OK, ())
    stage = result.stages[INDUCTOR]
    assert stage.artifacts is not None
    assert stage.artifacts.units == ("decode:cuda:b1", "decode:cuda:b8")
    assert graphs(1, 2, 4, 8) <= set(stage.artifacts.built)
    assert not graphs(16) & set(stage.artifacts.built)
    assert stage.server is not None
    assert stage.server.command[-2:] == ("--torch-compile-max-bs", "8")
    assert stage.env == on_every_core()
    served = result.stages[SERVE]
    assert served.artifacts is not None
    # What the campaign's own flags compile beyond that.
    assert graphs(16, 32) <= set(served.artifacts.built)
    assert not graphs(8) & set(served.artifacts.built)
    assert result.verify is not None
    assert (result.verify.status, result.verify.new_files) == ("ok", 0)
    assert set(statuses(host.ensure(ON, batch_sizes=[1, 8])).values()) == {"noop", "skipped"}


def test_where_the_flags_have_no_batch_compiled_no_server_is_started_for_it(host: Host) -> None:
    asked = host.request(ON, "--torch-compile-max-bs=0")
    plan = take_survey(asked, host.environ, gpus=host.gpus).plan
    assert next(each.reason for each in plan.decisions if each.stage is INDUCTOR) == "no_decode_graphs"


def test_a_batch_that_decode_does_not_capture_is_named(host: Host) -> None:
    stage = host.ensure(ON, batch_sizes=[8, 300]).stages[INDUCTOR]
    assert stage.status is StageStatus.OK
    assert stage.warnings == ("decode captures no batch above 256: 300 runs without what was compiled",)


@pytest.mark.parametrize(("sizes", "batches"), [([1, 8], "1, 2, 4, 8"), ([1], "1")])
def test_a_server_that_compiles_no_graph_of_decode_is_no_success(host: Host, sizes: list[int], batches: str) -> None:
    """It has one all the same, of a small function of SGLang's."""
    stage = host.ensure(ON, batch_sizes=sizes, faults="no-decode-graphs", selected=(INDUCTOR,)).stages[INDUCTOR]
    assert (stage.status, stage.error_type) == (StageStatus.ERROR, ErrorType.UNSUPPORTED)
    said = "the server started with --enable-torch-compile and used 1 graphs, too few for decode in batches of "
    assert stage.errors[0].message == said + batches


def test_where_sglang_leaves_it_out_itself_that_is_said(host: Host) -> None:
    stage = host.ensure(ON, batch_sizes=[1], faults="leaves-compile-out", selected=(INDUCTOR,)).stages[INDUCTOR]
    assert (stage.status, stage.error_type) == (StageStatus.ERROR, ErrorType.UNSUPPORTED)
    said = "SGLang holds that this model cannot be compiled, and leaves --enable-torch-compile out"
    assert stage.errors[0].message == said


def test_gpu_memory_that_triton_lacks_is_no_defect_of_torch_compile(host: Host) -> None:
    stage = host.ensure(ON, batch_sizes=[1], faults="triton-oom", selected=(INDUCTOR,)).stages[INDUCTOR]
    assert stage.status is StageStatus.OK
    assert stage.server is not None
    assert (stage.server.mem_fraction, stage.server.attempts) == (0.93, 2)


def test_where_no_other_server_follows_the_stage_starts_a_second_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, own = "TORCHINDUCTOR_COMPILE_THREADS", on_every_core()
    monkeypatch.setenv("FAKE_SHOWS", threads)
    result = host.ensure(ON, batch_sizes=[1], selected=(INDUCTOR,))
    assert result.stages[INDUCTOR].status is StageStatus.OK
    shown = [line for line in host.log("inductor").read_text().splitlines() if line.startswith(threads)]
    assert shown == [f"{threads}={own[threads]}", f"{threads}=1"]
    completion = host.completion(INDUCTOR)
    assert completion is not None
    assert graphs(1) <= {str(Path(path).parent) for path in completion.artifacts}
    kernel = "triton/ABC/moe.cubin"
    assert kernel in completion.artifacts, "what the second start compiled and tuned, too"
    assert statuses(host.ensure(ON, batch_sizes=[1], selected=(INDUCTOR,)))["inductor"] == "noop"
    (host.layout.profiles / kernel).unlink()
    assert statuses(host.ensure(ON, batch_sizes=[1], selected=(INDUCTOR,)))["inductor"] == "ok"


def test_graphs_that_no_start_finds_again_are_no_success(host: Host) -> None:
    stage = host.ensure(ON, batch_sizes=[1], faults="fresh-graphs", selected=(INDUCTOR,)).stages[INDUCTOR]
    assert (stage.status, stage.error_type) == (StageStatus.ERROR, ErrorType.VERIFY_FAILED)
    assert stage.errors[0].message.startswith("a second start compiled 18 graphs again, first torchinductor/")
    assert host.completion(INDUCTOR) is None


def test_where_no_server_starts_with_it_that_is_said_and_the_rest_is_warmed_up(host: Host) -> None:
    result = host.ensure(ON, faults="no-torch-compile")
    assert (result.status, result.exit_code) == (RunStatus.PARTIAL, 13)
    stage, served = result.stages[INDUCTOR], result.stages[SERVE]
    assert (stage.status, stage.error_type) == (StageStatus.ERROR, ErrorType.UNSUPPORTED)
    assert "starts with --enable-torch-compile" in stage.errors[0].message
    place = "in forward_native (sglang/srt/layers/rotary_embedding/base.py:241)"
    assert f"Capture cuda graph failed: AssertionError: {place}" in stage.errors[0].message
    assert any("forward_native" in line for line in stage.errors[0].log_tail)
    assert served.status is StageStatus.OK
    assert served.warnings == ("warmed up without --enable-torch-compile: see the inductor stage",)
    assert served.server is not None
    assert ON not in served.server.command
    assert result.verify is not None
    assert (result.verify.status, result.verify.new_files) == ("ok", 0)
    assert result.verify.warnings == ("proved without --enable-torch-compile: see the inductor stage",)
    assert ON not in result.verify.command
    assert host.markers() == ["inductor"]

    known = host.ensure(ON)
    assert list(host.layout.run("run-2").glob("*.log")) == [], "no server was started, not even for a proof"
    assert (known.stages[INDUCTOR].error_type, known.exit_code) == (ErrorType.UNSUPPORTED, 13)
    (error,) = known.stages[INDUCTOR].errors
    assert error.message.startswith(stage.errors[0].message)
    assert "; known since 2" in error.message
    assert "--skip" not in error.hint, "no server would start: the flag is still there"
    assert statuses(known)["serve"] == "noop"
    assert known.verify is not None
    assert known.verify.reason == "verified"
    asked_again = host.ensure(ON, ops={**SKIPPED, INDUCTOR: StageOp.REBUILD}, verify=False)
    assert asked_again.stages[INDUCTOR].status is StageStatus.OK
    assert host.markers() == []


def test_what_was_warmed_up_without_it_does_not_pass_for_a_server_with_it(host: Host) -> None:
    host.ensure(ON, faults="no-torch-compile")
    built = host.ensure(ON, ops={**SKIPPED, INDUCTOR: StageOp.REBUILD}, verify=False)
    served = built.stages[SERVE]
    assert (served.status, served.warnings) == (StageStatus.OK, ())
    assert served.server is not None
    assert ON in served.server.command
    proof = host.ensure(ON).verify
    assert proof is not None
    assert (proof.ran, proof.status, ON in proof.command) == (True, "ok", True)


def test_a_proof_falls_with_what_is_built_after_it(host: Host) -> None:
    host.ensure(ON)
    host.ensure(ON, ops={**SKIPPED, INDUCTOR: StageOp.REBUILD}, verify=False)
    proof = host.ensure(ON).verify
    assert proof is not None
    assert (proof.ran, proof.status) == (True, "ok")


def test_a_proof_by_itself_leaves_out_what_is_known_to_start_no_server(host: Host) -> None:
    host.ensure(ON, faults="no-torch-compile")
    alone = host.ensure(ON, faults="no-torch-compile", verify_only=True)
    assert (alone.status, alone.exit_code) == (RunStatus.OK, 0)
    assert alone.verify is not None
    assert alone.verify.warnings == ("proved without --enable-torch-compile: see the inductor stage",)
    after = host.ensure(ON)
    assert statuses(after)["serve"] == "noop"
    assert after.verify is not None
    assert after.verify.reason == "verified"


def test_a_users_own_command_leaves_nothing_out_and_what_is_known_stays_known(host: Host) -> None:
    own = (*SERVER, COMPILES, ON)
    first = host.ensure(ON, faults="no-torch-compile", server_command=own)
    again = host.ensure(ON, faults="no-torch-compile", server_command=own)
    assert [each.stages[SERVE].status.value for each in (first, again)] == ["ok", "noop"]
    assert not list(host.layout.run("run-2").glob("*.log")), "no server was started"


def test_requests_for_other_batches_do_not_make_each_other_forgotten(host: Host) -> None:
    for sizes in ([1, 8], [1, 2]):
        host.ensure(ON, faults="no-torch-compile", batch_sizes=sizes)
    for sizes in ([1, 8], [1, 2]):
        known = host.ensure(ON, faults="no-torch-compile", batch_sizes=sizes)
        assert "; known since 2" in known.stages[INDUCTOR].errors[0].message
        assert statuses(known)["serve"] == "noop"


def test_who_leaves_the_stage_out_is_not_told_that_all_is_proved(host: Host) -> None:
    host.ensure(ON, faults="no-torch-compile")
    skipped = host.ensure(ON, faults="no-torch-compile", ops={**SKIPPED, INDUCTOR: StageOp.SKIP})
    assert (skipped.exit_code, statuses(skipped)["serve"]) == (14, "error")
