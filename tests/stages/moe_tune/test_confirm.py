"""The short server start that has to name the tuned config, where no other server does."""

from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.process_end import Cleanup
from rayprep.model.result import Artifacts
from rayprep.stages.moe_tune.confirm import confirm_by_server
from rayprep.stages.protocol import Built
from tests.host.test_ports import free_port
from tests.node.serving import LIBRARY
from tests.stages.contexts import build_context
from tests.stages.moe_tune.test_stage import request

COMPILED = ("--enable-torch-compile", "--torch-compile-max-bs=8")


def confirmed(base: Path, faults: str) -> tuple[Built, Path]:
    """What a stand-in for SGLang comes to, and the log."""
    layout, ends = Layout(base / "profiles", base / "telemetry"), list[Cleanup]()
    config = layout.cache(CacheName.MOE_CONFIGS) / "configs" / "triton_3_6_0" / "E=128,N=768.json"
    for folder in (config.parent, base / "scratch", base / "home"):
        folder.mkdir(parents=True)
    config.touch()
    env = {"HOME": str(base / "home"), "PYTHONPATH": str(LIBRARY), "FAKE_FAULTS": faults}
    context = build_context(layout, base / "moe_tune.log", base / "scratch", env, ends.append)
    asked = request(server_args=COMPILED, warmup_port=free_port())
    built = Built(units=("M=8",), used=frozenset(), artifacts=Artifacts(config_file=layout.located(config)))
    told = confirm_by_server(asked, context, built)
    assert ends[0].killed
    return told, context.log


def test_a_model_that_starts_with_no_torch_compile_still_says_which_config_it_uses(tmp_path: Path) -> None:
    built, log = confirmed(tmp_path, "no-torch-compile")
    assert built.artifacts and built.artifacts.verify_log and built.server
    assert built.artifacts.verified_in_log
    assert built.artifacts.verify_log.container_path == str(log)
    assert not set(COMPILED) & set(built.server.command)


def test_a_server_that_does_not_name_it_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no .*triton_3_6_0/E=128,N=768\.json") as caught:
        confirmed(tmp_path, "no-moe-config")
    assert caught.value.error_type is ErrorType.VERIFY_LOG_MISSING
