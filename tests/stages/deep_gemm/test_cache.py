"""DeepGEMM's cache folders: which of them it could load, in both layouts, and how one comes into being."""

from pathlib import Path

import pytest

from rayprep.stages.deep_gemm.cache import (
    Compilers,
    adopt,
    clear_left_over,
    entries,
    files_of,
    new_folder,
    publish,
    whole_entry,
)

FIRST = {"kernel.cu": "source", "kernel.cubin": "\x7fELF"}
SECOND = {**FIRST, "meta.json": "{}", ".committed": ""}


def make(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def without(files: dict[str, str], name: str) -> dict[str, str]:
    return {each: text for each, text in files.items() if each != name}


def test_a_whole_entry_of_each_layout(tmp_path: Path) -> None:
    assert whole_entry(make(tmp_path / "kernel.sm90_fp8_gemm_1d2d.0a1b", FIRST))
    assert whole_entry(make(tmp_path / "sm90_fp8_gemm_1d2d.0a1b", SECOND))
    assert not whole_entry(tmp_path / "kernel.not_there.0a1b")


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("how", ["gone", "empty", "link"])
def test_half_an_entry_of_the_first_layout(tmp_path: Path, name: str, how: str) -> None:
    folder = make(tmp_path / "kernel.a.0", without(FIRST, name))
    if how == "empty":
        (folder / name).touch()
    elif how == "link":
        (folder / name).symlink_to(make(tmp_path / "elsewhere", FIRST) / name)
    assert not whole_entry(folder)


@pytest.mark.parametrize("name", SECOND)
def test_half_an_entry_of_the_second_layout(tmp_path: Path, name: str) -> None:
    assert not whole_entry(make(tmp_path / "a.0", without(SECOND, name)))


@pytest.mark.parametrize("name", FIRST)
def test_an_empty_file_of_the_second_layout(tmp_path: Path, name: str) -> None:
    assert not whole_entry(make(tmp_path / "a.0", {**SECOND, name: ""}))
    assert not whole_entry(make(tmp_path / "b.0", {**SECOND, "meta.json": ""}))


def test_an_entry_names_the_compiler_that_it_is_of(tmp_path: Path) -> None:
    entry = make(tmp_path / "listing/cache/a.0", {**SECOND, "meta.json": '{"command": "/scratch/nvcc /x/kernel.cu"}'})
    adopt(entry, tmp_path / "real", Compilers("/scratch/nvcc", "/cuda/nvcc"))
    (adopted,) = entries(tmp_path / "real")
    assert whole_entry(adopted)
    assert (adopted / "meta.json").read_text(encoding="utf-8") == '{"command": "/cuda/nvcc /x/kernel.cu"}'


def test_an_entry_appears_whole_and_never_over_a_whole_one(tmp_path: Path) -> None:
    target = tmp_path / "cache/kernel.a.0"
    publish(make(tmp_path / "tmp/1", FIRST), target)
    assert whole_entry(target)
    publish(make(tmp_path / "tmp/2", {**FIRST, "kernel.cu": "another"}), target)
    assert (target / "kernel.cu").read_text(encoding="utf-8") == "source"
    assert not (tmp_path / "tmp/2").exists()


def test_half_an_entry_in_the_way_is_an_error(tmp_path: Path) -> None:
    target = make(tmp_path / "cache/kernel.a.0", without(FIRST, "kernel.cubin"))
    with pytest.raises(OSError, match="not empty"):
        publish(make(tmp_path / "tmp/1", FIRST), target)


def test_a_whole_entry_is_copied_into_another_cache(tmp_path: Path) -> None:
    entry = make(tmp_path / "listing/cache/kernel.a.0", FIRST)
    adopt(entry, tmp_path / "real", Compilers("/scratch/nvcc", "/cuda/nvcc"))
    assert [path.name for path in entries(tmp_path / "real")] == ["kernel.a.0"]
    assert files_of(entries(tmp_path / "real")[0]) == files_of(entry) == ["kernel.cu", "kernel.cubin"]
    assert not list((tmp_path / "real/tmp").iterdir())


def test_only_what_is_ours_is_cleared(tmp_path: Path) -> None:
    ours, theirs = new_folder(tmp_path), make(tmp_path / "tmp/0f-a-library's-own", FIRST)
    clear_left_over(tmp_path)
    assert (ours.exists(), theirs.exists()) == (False, True)


def test_a_cache_that_is_not_there_has_no_entries(tmp_path: Path) -> None:
    assert entries(tmp_path / "none") == []
    clear_left_over(tmp_path / "none")
