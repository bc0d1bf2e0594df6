"""How wheels are fetched: by a pip that finds its packages in a folder, never on a network."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest, HostUnfit
from scripts.upstream.__main__ import main
from scripts.upstream.release import cache_folder, fetch_release

REQUIRES = ("flashinfer_python[cu13]==0.6.1", "sgl-deep-gemm==0.1.2.post1")


def make_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    info = f"{name}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    files: Mapping[str, str] = {
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip finds."""
    folder = tmp_path / "shop"
    folder.mkdir()
    make_wheel(folder, "sglang", "0.5.16", REQUIRES)
    make_wheel(folder, "sglang", "0.4.0")
    make_wheel(folder, "flashinfer_python", "0.6.1")
    make_wheel(folder, "sgl_deep_gemm", "0.1.2.post1")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_the_pinned_libraries_come_along_and_are_kept(shop: Path) -> None:
    release = fetch_release("0.5.16")
    assert release.pins == {"flashinfer-python": "0.6.1", "sgl-deep-gemm": "0.1.2.post1"}
    assert set(release.wheels) == {"sglang", *release.pins}
    for path in shop.iterdir():
        path.unlink()
    assert fetch_release("0.5.16").pins == release.pins
    assert sorted(path.suffix for path in cache_folder().iterdir()) == [*[".lock"] * 3, *[".whl"] * 3]


def keep(shop: Path) -> None:
    """Put all that pip would fetch where it is kept, which spares pip's time."""
    shutil.copytree(shop, cache_folder())


def test_a_damaged_wheel_is_fetched_again(shop: Path) -> None:
    keep(shop)
    kept = cache_folder() / "sglang-0.5.16-py3-none-any.whl"
    kept.write_bytes(kept.read_bytes()[:100])
    assert fetch_release("0.5.16").pins
    assert zipfile.is_zipfile(kept)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("version", ["nonsense", "", "0.5.16; rm", "--index-url", "0.5.99", "0.4.0"])
def test_no_such_release(version: str) -> None:
    with pytest.raises(BadRequest) as raised:
        fetch_release(version)
    assert "\n" not in raised.value.line


def test_no_index(shop: Path) -> None:
    for path in shop.iterdir():
        path.unlink()
    with pytest.raises(HostUnfit, match=r"cannot download sglang 0\.5\.16"):
        fetch_release("0.5.16")


def test_a_cache_that_cannot_be_written(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(next(shop.iterdir())))
    with pytest.raises(HostUnfit, match="cannot be kept"):
        fetch_release("0.5.16")


def test_what_does_not_hold_is_a_line_each(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is in these wheels, so that nearly nothing holds."""
    keep(shop)
    assert main(["0.5.16"]) == 1
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "sglang 0.5.16 with flashinfer-python 0.6.1 and sgl-deep-gemm 0.1.2.post1"
    assert last.startswith(f"{len(lines)} of ")
    assert "flag --tp-size: no such flag is declared: rayprep's own server does not start: its log says why" in lines


@pytest.mark.usefixtures("shop")
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("check-sglang: error: ") and said.err.count("\n") == 1
