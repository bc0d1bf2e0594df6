"""What a child gets to see."""

import os
from pathlib import Path

import pytest

from rayprep.host.environment import (
    RUN_MARK,
    STORE_MARK,
    child_env,
    compiler_settings,
    for_ray,
    hub_folders,
    is_passed_on,
    on_every_core,
    server_cache_env,
)
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName

LAYOUT = Layout(Path("/profiles"), Path("/telemetry"))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "GITHUB_TOKEN_2",
            "hf_token",
            "AWS_SESSION_TOKEN",
            "TOKEN",
            "NPM_TOKENX",
        ),
        *("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "CLIENT_SECRET", "MY_SECRETS", "DB_PASSWORD", "DB_PASSWD"),
        *("OPENAI_API_KEY", "WANDB_APIKEY", "SSH_PRIVATE_KEY", "GPG_PASSPHRASE", "GOOGLE_APPLICATION_CREDENTIALS"),
        *("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_worker_niceness", "RAY_AUTH_MODE"),
        "SGLANG_MOE_CONFIG_DIR",
        *("OMP_NUM_THREADS", "PYTHONSTARTUP", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"),
    ],
)
def test_secrets_and_what_misleads_are_kept_back(name: str) -> None:
    assert not is_passed_on(name)
    assert name not in child_env({name: "x", "PATH": "/bin"}, LAYOUT, Path("/scratch"), "run-1")


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CXX", "LANG", "TMPDIR", "PYTHONPATH"),
        *("NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS", "HF_ENDPOINT"),
        # Neither holds a secret, and a server without the second or third is another server.
        *("TOKENIZERS_PARALLELISM", "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION"),
        *("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", "MAX_TOKENS", "ARRAY_SIZE", "SPRAY_X"),
    ],
)
def test_everything_else_is_inherited(name: str) -> None:
    assert is_passed_on(name)
    assert child_env({name: "as it was"}, LAYOUT, Path("/scratch"), "run-1")[name] == "as it was"


def test_a_child_has_a_home_and_caches_of_its_own_and_carries_both_marks() -> None:
    theirs = {"HOME": "/home/me", "TRITON_CACHE_DIR": "/elsewhere", STORE_MARK: "other", RUN_MARK: "other"}
    env = child_env(theirs, LAYOUT, Path("/scratch"), "run-1")
    assert env["HOME"] == "/scratch"
    assert env.items() >= server_cache_env(LAYOUT).items()
    assert env["TRITON_CACHE_DIR"] == "/profiles/triton"
    assert (env[STORE_MARK], env[RUN_MARK]) == ("/profiles", "run-1")
    assert child_env({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, LAYOUT, Path("/scratch"), "run-1").items() >= {
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    }, "by whose numbers CUDA_VISIBLE_DEVICES was read"
    assert env["SPT_NOENV"] == "1", "or setproctitle, which sglang calls, wipes the marks out"


@pytest.mark.parametrize(("file", "set_"), [("triton_3_6_0/E=8.json", True), ("active/m.json", False), ("x", False)])
def test_a_server_is_sent_to_moe_configs_only_where_there_are_some(tmp_path: Path, file: str, set_: bool) -> None:
    """It dies in os.listdir of a folder that has no configs/, and without the variable it takes its own."""
    layout = Layout(tmp_path, tmp_path)
    config = layout.cache(CacheName.MOE_CONFIGS) / "configs" / file
    config.parent.mkdir(parents=True)
    config.touch()
    alike = {"USE_STATIC_CUDA_LAUNCHER": "0", "DYNAMIC_SCALE_RBLOCK": "0", "COMPILE_THREADS": "1"}
    expected = {**layout.cache_env(), **{f"TORCHINDUCTOR_{name}": value for name, value in alike.items()}}
    if not set_:
        del expected["SGLANG_MOE_CONFIG_DIR"]
    assert server_cache_env(layout) == expected


def test_a_server_that_uses_torch_compile_starts_the_same_way_each_time() -> None:
    launcher, threads = "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER", "TORCHINDUCTOR_COMPILE_THREADS"
    env = child_env({launcher: "1", threads: "8"}, LAYOUT, Path("/scratch"), "run-1")
    assert (env[launcher], env[threads]) == ("0", "1")
    assert on_every_core() == {threads: str(min(32, len(os.sched_getaffinity(0))))}
    ours = ("TORCHINDUCTOR_DYNAMIC_SCALE_RBLOCK=0", f"{launcher}=0")
    assert compiler_settings({}) == ours, "what was built without them is not what a server will look for"
    assert compiler_settings(dict(each.split("=") for each in ours)) == ours, "as in a shell that took `rayprep env`"
    theirs = {launcher: "1", threads: "8", "TORCHINDUCTOR_MAX_AUTOTUNE": "1"}
    assert compiler_settings(theirs) == (ours[0], "TORCHINDUCTOR_MAX_AUTOTUNE=1", ours[1])


@pytest.mark.parametrize("prefix", ["DG_JIT_", "DJ_JIT_", "SGL_DG_", "SGLANG_DG_"])
def test_deep_gemms_switches_by_any_name_change_its_kernels(prefix: str) -> None:
    theirs = {f"{prefix}USE_FAST_MATH": "1", f"{prefix}CACHE_DIR": "/x", f"{prefix}NVCC_COMPILER": "/x/nvcc"}
    assert set(compiler_settings(theirs)) - set(compiler_settings({})) == {f"{prefix}USE_FAST_MATH=1"}


def test_what_may_hold_a_secret_joins_no_identity_and_no_child() -> None:
    environ = {
        "TORCHINDUCTOR_REDIS_URL": "redis://:hunter2@cache:6379/0",
        "TORCHINDUCTOR_REMOTE_CACHE_TOKEN": "hunter3",
        "NVCC_APPEND_FLAGS": "-DURL=http://u:hunter4@h/",
        "http_proxy": "u:hunter5@h:3128",
        "https_proxy": "http://h:3128",
        "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    }
    settings = compiler_settings(environ)
    assert "hunter" not in str(settings)
    assert "TORCHINDUCTOR_MAX_AUTOTUNE=1" in settings
    env = child_env(environ, LAYOUT, Path("/scratch"), "run-1")
    assert "hunter" not in str(env)
    assert (env["https_proxy"], env["TORCHINDUCTOR_MAX_AUTOTUNE"]) == ("http://h:3128", "1")
    plain = {"TORCHINDUCTOR_REDIS_URL": "redis://cache:6379/0"}
    assert child_env(plain, LAYOUT, Path("/scratch"), "run-1").items() >= plain.items()


def test_making_an_environment_changes_none() -> None:
    before = dict(os.environ)
    given = {"HOME": "/home/me", "HF_TOKEN": "x"}
    child_env(given, LAYOUT, Path("/scratch"), "run-1")
    assert given == {"HOME": "/home/me", "HF_TOKEN": "x"}
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("environ", "home", "hub"),
    [
        ({}, "/home/me/.cache/huggingface", "/home/me/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface", "/xdg/huggingface/hub"),
        ({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"}, "/hf", "/hf/hub"),
        ({"HF_HUB_CACHE": "/hub"}, "/home/me/.cache/huggingface", "/hub"),
        ({"HF_HOME": "/hf", "HF_HUB_CACHE": "/hub"}, "/hf", "/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/home/me/.cache/huggingface", "/old"),
        ({"HF_HUB_CACHE": "/hub", "HUGGINGFACE_HUB_CACHE": "/old"}, "/home/me/.cache/huggingface", "/hub"),
        ({"HF_HOME": "~/models"}, "/home/me/models", "/home/me/models/hub"),
        ({"HF_HOME": "$DATA/hf", "HF_HUB_CACHE": "${DATA}/hub"}, "/data/hf", "/data/hub"),
        ({"HF_HOME": "", "HF_HUB_CACHE": ""}, "/home/me/.cache/huggingface", "/home/me/.cache/huggingface/hub"),
    ],
)
def test_the_hugging_face_folders_are_those_of_the_user_not_of_the_childs_home(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], home: str, hub: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    assert hub_folders(environ) == {"HF_HOME": home, "HF_HUB_CACHE": hub}
    env = child_env(environ, LAYOUT, Path("/scratch"), "run-1")
    assert (env["HF_HOME"], env["HF_HUB_CACHE"]) == (home, hub)


def test_rays_processes_get_what_the_user_has_set_but_no_secret() -> None:
    environ = {"PATH": "/bin", "MYSQL_PWD": "hunter2", "RAY_AUTH_TOKEN_PATH": "/t", "XDG_CACHE_HOME": "/c", "A": "1"}
    assert for_ray(environ, {"A": "2", "B": "3"}) == {
        "PATH": "/bin",
        "RAY_AUTH_TOKEN_PATH": "/t",
        "XDG_CACHE_HOME": "/c",
        "A": "2",
        "B": "3",
    }
