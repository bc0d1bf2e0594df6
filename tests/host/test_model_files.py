"""Finding a model: a folder, a file, a shipped one, the Hugging Face cache, or nothing."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest
from rayprep.host.model_files import SHIPPED, find_model
from tests.conftest import write_model
from tests.host.other_user import NOBODY, as_user
from tests.needs import needs_root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this folder nor this user's cache has a model."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def put_in_hub(hub: Path, name: str, revision: str = "0a1b2c") -> Path:
    """As huggingface_hub lays a snapshot out: files in blobs/, links to them in snapshots/REVISION/."""
    folder = hub / ("models--" + name.replace("/", "--"))
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    shutil.copy(SHIPPED / "tiny-dense" / "config.json", folder / "blobs" / "f00d")
    (snapshot / "config.json").symlink_to("../../blobs/f00d")
    (folder / "refs" / "main").write_text(revision + "\n", encoding="utf-8")
    return snapshot / "config.json"


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe"])
def test_a_shipped_model(name: str) -> None:
    found = find_model(name, {})
    assert (found.slug, found.source) == (name, SHIPPED / name / "config.json")
    assert found.digest.startswith("sha256:")


def test_every_way_to_say_a_folder_gives_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ensure` and `inspect` must look for the same slug, from whatever folder."""
    folder = write_model(tmp_path / "models" / "My-Model")
    (folder / "sub").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    names = [str(folder), f"{folder}/", f"{folder}/config.json", ".", "./", "config.json", "./config.json"]
    names += ["sub/..", f"{folder}/sub/..", "../My-Model", "../../models/./My-Model", "~/models/My-Model"]
    found = {name: find_model(name, {}) for name in names}
    assert {name: each.slug for name, each in found.items()} == dict.fromkeys(names, "my-model")
    assert {each.source for each in found.values()} == {folder / "config.json"}


def test_a_linked_folder_has_the_links_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_model(tmp_path / "real"))
    assert find_model(str(tmp_path / "link"), {}).slug == "link"


def test_a_config_by_another_name(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "tiny-dense" / "config.json", tmp_path / "mine.json")
    assert find_model(str(tmp_path / "mine.json"), {}).slug == "mine.json"


def test_the_same_config_under_two_names_has_one_digest_and_two_slugs(tmp_path: Path) -> None:
    one, two = (find_model(str(write_model(tmp_path / name)), {}) for name in ("one", "two"))
    assert (one.slug, two.slug) == ("one", "two")
    assert one.digest == two.digest == find_model("tiny-dense", {}).digest


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_hugging_face_cache_is_found_by_each_of_its_variables(tmp_path: Path, variable: str) -> None:
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}
    base = tmp_path / "base" if variable != "HOME" else tmp_path / "home" / ".cache"
    config = put_in_hub(base / below.get(variable, "huggingface/hub"), "Qwen/Qwen2.5-7B")
    found = find_model("Qwen/Qwen2.5-7B", {} if variable == "HOME" else {variable: str(base)})
    assert (found.slug, found.source) == ("qwen2.5-7b", config)


def test_a_snapshots_folder_given_by_hand_has_the_models_name(tmp_path: Path) -> None:
    config = put_in_hub(tmp_path / "hub", "Qwen/Qwen2.5-7B")
    assert find_model(str(config.parent), {}).slug == "qwen2.5-7b"
    assert find_model(str(config), {}).slug == "qwen2.5-7b"


def test_a_folder_here_wins_over_shipped_and_cached_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "tiny-dense", hidden_size=128)
    assert find_model("tiny-dense", {}).source == tmp_path / "tiny-dense" / "config.json"


@pytest.mark.parametrize("broken", ["no refs", "other revision", "no config", "bad ref"])
def test_a_model_that_is_only_half_in_the_cache_is_not_there(tmp_path: Path, broken: str) -> None:
    config = put_in_hub(tmp_path, "org/name")
    folder = config.parent.parent.parent
    if broken == "no refs":
        (folder / "refs" / "main").unlink()
    elif broken == "other revision":
        (folder / "refs" / "main").write_text("ffff", encoding="utf-8")
    elif broken == "no config":
        (folder / "blobs" / "f00d").unlink()
    else:
        (folder / "refs" / "main").write_bytes(b"\xff\xfe")
    with pytest.raises(BadRequest, match="org/name") as caught:
        find_model("org/name", {"HF_HUB_CACHE": str(tmp_path)})
    assert len(caught.value.line.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["no/such", "no-such", "/no/such", "~nosuchuser/x", "x" * 300, "x/" * 3000, "a\0b", "../../x"]
)
def test_a_model_that_is_nowhere_is_one_line(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        find_model(name, {})
    assert len(caught.value.line.splitlines()) == 1


def test_what_is_nowhere_says_where_it_was_looked_for_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"not in the Hugging Face cache {tmp_path}/hub") as caught:
        find_model("org/name", {"HF_HUB_CACHE": f"{tmp_path}/hub"})
    assert "hf download org/name config.json" in caught.value.hint
    assert "tiny-dense, tiny-moe" in caught.value.hint


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"model folder {tmp_path} has no config.json"):
        find_model(str(tmp_path), {})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"hidden_size": 64}'])
def test_a_config_that_cannot_be_read_is_one_line_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(content)
    with pytest.raises(BadRequest, match="model") as caught:
        find_model(str(tmp_path / "model"), {})
    assert str(tmp_path / "model") in caught.value.line
    assert len(caught.value.line.splitlines()) == 1


@needs_root()
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_config_that_may_not_be_read_is_one_line(closed: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = write_model(Path(name) / "model")
        (folder if closed == "folder" else folder / "config.json").chmod(0o700 if closed == "folder" else 0o600)
        with pytest.raises(BadRequest, match="cannot be read: Permission denied"):
            as_user(NOBODY, lambda: find_model(str(folder), {}))


def test_a_folder_that_no_json_file_could_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"mod\xffel")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(BadRequest, match="not UTF-8") as caught:
        find_model(str(folder), {})
    caught.value.line.encode()


def test_another_quantisation_beside_the_same_config_is_another_model(tmp_path: Path) -> None:
    """Exports of one model bear one name, and one config.json."""
    found = []
    for place, algo in (("fp8", "FP8"), ("fp4", "NVFP4")):
        folder = write_model(tmp_path / place / "llama")
        export = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algo}}
        (folder / "hf_quant_config.json").write_text(json.dumps(export), encoding="utf-8")
        found.append(find_model(str(folder), {}))
    assert found[0].digest != found[1].digest
    assert [each.architecture.quantization and each.architecture.quantization.quant_method for each in found] == [
        "modelopt_fp8",
        "modelopt_fp4",
    ]


def test_in_the_hub_cache_the_quantisation_lies_beside_the_config_too(tmp_path: Path) -> None:
    config = put_in_hub(tmp_path / "hub", "org/model")
    alone = find_model("org/model", {"HF_HUB_CACHE": str(tmp_path / "hub")})
    config.with_name("quantize_config.json").write_text('{"bits": 4}', encoding="utf-8")
    assert find_model("org/model", {"HF_HUB_CACHE": str(tmp_path / "hub")}).digest != alone.digest


def test_a_config_of_another_name_stands_for_itself(tmp_path: Path) -> None:
    """A server is given that one file."""
    folder = write_model(tmp_path / "llama")
    other = shutil.copy(folder / "config.json", folder / "variant.json")
    before = find_model(str(other), {})
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}', encoding="utf-8")
    assert find_model(str(other), {}) == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b" " * (5 << 20)], ids=["not-utf-8", "too-large"])
def test_a_file_beside_it_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write_model(tmp_path / "llama")
    (folder / "hf_quant_config.json").write_bytes(content)
    with pytest.raises(BadRequest, match=r"hf_quant_config\.json cannot be read"):
        find_model(str(folder), {})
