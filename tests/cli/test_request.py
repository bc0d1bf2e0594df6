"""From flags to a request: what a server command says need not be said twice."""

from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest
from rayprep.cli.request import Flags, node_requests, resolve_flags
from rayprep.model.spec import StageOp
from rayprep.model.stages import StageName

SERVE = ["python", "-m", "sglang.launch_server"]


@pytest.mark.parametrize(
    ("words", "model", "tp"),
    [
        (["--model-path", "/m", "--tp-size", "4"], "/m", 4),
        (["--model-path=/m", "--tp=2"], "/m", 2),
        (["--model", "/m", "--tensor-parallel-size", "8"], "/m", 8),
        (["--model-path", "/other", "--model-path", "/m"], "/m", 1),
        (["--model-path", "/m", "--port", "30000"], "/m", 1),
    ],
)
def test_a_server_command_names_model_and_tp(words: list[str], model: str, tp: int) -> None:
    resolved = resolve_flags(Flags(server_command=[*SERVE, *words]))
    assert (resolved.spec.model, resolved.spec.tp) == (model, tp)
    assert resolved.spec.server_command == (*SERVE, *words)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Flags(model="mine"), "the server command is for model /m, the request for model mine"),
        (Flags(tp=2), "the server command is for tp 4, the request for tp 2"),
    ],
)
def test_another_models_command_proves_nothing_of_this_one(given: Flags, says: str) -> None:
    given.server_command = [*SERVE, "--model-path", "/m", "--tp", "4"]
    with pytest.raises(BadRequest, match=says):
        resolve_flags(given)


@pytest.mark.parametrize("model", ["/here/m", "m", "./m/", "/here/x/../m", "~/m", "m/config.json"])
def test_one_model_may_be_named_twice(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = model.replace("/here", str(tmp_path))
    command = [*SERVE, "--model-path", f"{tmp_path}/m", "--tp", "4"]
    assert resolve_flags(Flags(model=given, tp=4, server_command=command)).spec.model == given


def test_a_commands_program_is_looked_up_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "start.sh"
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)

    def program(name: str) -> str:
        environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
        flags = Flags(model="m", server_command=[name, "--port", "1"], profiles_root="p")
        asked = node_requests(flags, environ).each[0]
        assert asked.resolved.spec.server_command[1:] == ("--port", "1")
        return asked.resolved.spec.server_command[0]

    assert program("./start.sh") == program("start.sh") == str(script)
    script.chmod(0o644)
    for name in ("./start.sh", "start.sh", "gone", ""):
        with pytest.raises(BadRequest, match=f"{name!r} is not there, or cannot be run"):
            program(name)


def test_the_commands_flags_decide_which_caches_are_meant() -> None:
    words = ["--model-path", "/m", "--port", "30000", "--attention-backend", "fa3", "--lora-paths", "a", "b c"]
    spec = resolve_flags(Flags(server_command=[*SERVE, *words, "--context-length=16384", "--api-key", "sk"])).spec
    assert spec.server_args == ("--attention-backend", "fa3", "--lora-paths", "a", "b c")
    assert spec.max_seq_len == 16384
    own = resolve_flags(Flags(server_command=[*SERVE, *words], server_args=["--attention-backend triton"])).spec
    assert own.server_args == ("--attention-backend", "triton")


def test_a_command_that_names_no_model_needs_the_flag() -> None:
    with pytest.raises(BadRequest, match="no model given"):
        resolve_flags(Flags(server_command=["./serve.sh", "--port", "30000"]))
    assert resolve_flags(Flags(model="m", server_command=["./serve.sh"])).spec.model == "m"


def test_a_tp_that_is_none_is_refused() -> None:
    with pytest.raises(BadRequest, match="tp"):
        resolve_flags(Flags(server_command=[*SERVE, "--model-path", "/m", "--tp", "many"]))


def test_only_what_was_given_is_there() -> None:
    assert Flags().values() == {}
    assert Flags(verify=False, load_format="auto", deep_gemm_via="server").values() == {
        "verify": False,
        "load_format": "auto",
        "deep_gemm_via": "server",
    }


def test_stages_by_name_and_alias() -> None:
    values = Flags(rebuild=["serve", "deep-gemm"], skip=["triton"]).values()
    ops = {StageName.SERVE: StageOp.REBUILD, StageName.DEEP_GEMM: StageOp.REBUILD, StageName.MOE_TUNE: StageOp.SKIP}
    assert values == {"ops": ops}


def test_server_args_are_split_as_a_shell_would() -> None:
    values = Flags(server_args=["--context-length 8192", "--chat-template='a b'"]).values()
    assert values == {"server_args": ["--context-length", "8192", "--chat-template=a b"]}


def test_a_campaign_is_several_requests_under_the_same_flags(tmp_path: Path) -> None:
    file = tmp_path / "night.json"
    file.write_text('{"campaign": [{"model": "a", "tp": 2, "typo": 1}, {"model": "b"}], "note": "x"}', encoding="utf-8")
    flags = Flags(spec_file=file, run_id="night", batch_sizes=[4], profiles_root="p")
    asked = node_requests(flags, {"HOME": str(tmp_path)})
    assert asked.campaign
    specs = {each.run_id: each.resolved.spec for each in asked.each}
    assert {name: (spec.model, spec.tp, spec.batch_sizes) for name, spec in specs.items()} == {
        "night-1": ("a", 2, (4,)),
        "night-2": ("b", 1, (4,)),
    }
    assert [each.resolved.ignored_spec_keys for each in asked.each] == [("note", "typo"), ("note",)]
    assert "night.json, request 1: unknown key typo" in asked.each[0].resolved.warnings[1]


def test_what_is_wrong_in_the_last_request_is_said_before_the_first_begins(tmp_path: Path) -> None:
    file = tmp_path / "night.json"
    file.write_text('{"campaign": [{"model": "a"}, {"model": "b", "tp": "many"}]}', encoding="utf-8")
    with pytest.raises(BadRequest, match=r"^request 2 of the campaign: tp"):
        node_requests(Flags(spec_file=file), {"HOME": str(tmp_path)})
