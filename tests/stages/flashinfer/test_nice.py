"""Which of FlashInfer's modules stand back for a server that is starting."""

import os
from pathlib import Path

from tests.stages.flashinfer.test_stage import PREFILL, Host, needs_ninja


@needs_ninja
def test_all_but_the_longest_stand_back(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.compiler(f'cp "$1" "$2"; nice > "{tmp_path}/$(basename $(dirname "$2")).nice"')
    host.build()
    seen = {path.stem: int(path.read_text()) for path in tmp_path.glob("*.nice")}
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert [seen.pop(name) for name in (f"{PREFILL}_sm90", "sampling")] == [own, own]
    assert set(seen.values()) == {min(own + 10, 19)}
    assert len(seen) == 3
