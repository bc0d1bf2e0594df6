"""Two builders of one module: FlashInfer's own lock keeps the second from compiling beside the first."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rayprep.sglang.flashinfer_modules import FlashInferModule
from rayprep.stages.flashinfer.protocol import ModulesLine, ModulesRequest
from tests.processes import wait_for
from tests.stages.flashinfer.test_stage import Host, needs_ninja


@needs_ninja
def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    host = Host(tmp_path)
    begun, go, locks = tmp_path / "begun", tmp_path / "go", tmp_path / "locks.log"
    begun.touch()
    wait = f'i=0; while [ ! -e "{go}" ]; do i=$((i + 1)); [ $i -lt 600 ] || exit 1; sleep 0.05; done'
    host.compiler(f'echo "$2" >> "{begun}"; {wait}; cp "$1" "$2"')
    asked = ModulesRequest(
        mode="build", workspace=str(host.workspace), modules=(FlashInferModule(generator="gen_sampling_module"),)
    )
    with ThreadPoolExecutor() as pool:
        first = pool.submit(host.child, asked)
        wait_for(begun.read_text, "the first to compile")
        second = pool.submit(host.child, asked, FAKE_LOCK_LOG=str(locks))
        wait_for(lambda: waits(locks) or compiles(begun) > 1, "the second to wait, or to compile as well")
        go.touch()
    assert all(isinstance(built.result()[-1], ModulesLine) for built in (first, second))
    assert compiles(begun) == 1
    assert host.library("sampling").read_text() == "// sampling\n"


def waits(log: Path) -> bool:
    return log.exists() and "not acquired" in log.read_text()


def compiles(begun: Path) -> int:
    return len(begun.read_text().split())
