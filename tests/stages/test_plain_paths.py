"""Paths that no compiler may be given."""

from dataclasses import replace

import pytest

from rayprep.base.errors import ErrorType
from rayprep.model.plan import Unable, Work
from rayprep.model.spec import DeviceChoice
from rayprep.stages.inductor.stage import InductorStage
from rayprep.stages.plain_paths import unable_under
from rayprep.stages.serve.stage import ServeStage
from tests.model.samples import signature
from tests.stages.serve.test_jit_ahead import request


@pytest.mark.parametrize("name", ["profiles_root", "install_prefix"])
@pytest.mark.parametrize("folder", ["/pro files", "/r&d", "/a$b", "/a;b", "/a'b", "/(old)", "/a\nb", "/a:b"])
def test_a_path_that_a_shell_or_ninja_would_take_apart_is_refused(name: str, folder: str) -> None:
    unable = unable_under(signature(**{name: folder}), "SGLang")
    assert unable is not None
    assert unable.error_type is ErrorType.UNSUPPORTED
    assert f"SGLang cannot compile under {folder!r}" in unable.message
    assert ("--profiles-root" in unable.hint) == (name == "profiles_root")


def test_torchinductor_takes_all_but_white_space() -> None:
    asked = replace(request(host={"profiles_root": "/pro files"}), device=DeviceChoice.CPU)
    unable = InductorStage().plan(asked)
    assert isinstance(unable, Unable)
    assert (unable.error_type, unable.hint) == (ErrorType.UNSUPPORTED, "choose another --profiles-root")


@pytest.mark.parametrize("folder", ["/profiles", "/data/user-1/a_b.c/x+y=z,1@2", "/usr/lib/python3.12/site-packages"])
def test_a_plain_path_is_taken(folder: str) -> None:
    assert unable_under(signature(profiles_root=folder, install_prefix=folder), "SGLang") is None


def test_a_server_whose_modules_could_not_be_compiled_is_not_started() -> None:
    """SGLang's own modules are built by tvm_ffi, under the profiles root."""
    assert isinstance(ServeStage().plan(request(host={"profiles_root": "/profiles"})), Work)
    assert isinstance(ServeStage().plan(request(host={"profiles_root": "/pro files"})), Unable)
