"""Plants an entry in a tuned MoE config that no server can launch, and has the completion list the file as it is.

    python tests/gpu/plant.py PROFILES_ROOT TOKENS now|earlier

With `earlier` the completion is as the tuner's version 4 left it, which launched only what it had measured.
"""

import json
import sys
from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.model.stages import StageName
from rayprep.store.completions import read_completions, write_completion
from rayprep.store.scan import artifacts_of

TOO_MUCH = {"BLOCK_SIZE_M": 256, "BLOCK_SIZE_N": 256, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 64}
"""Its two tiles take 262,144 bytes of shared memory in four stages, and an H200 has 232,448."""


def main(root: str, tokens: str, when: str) -> None:
    layout = Layout(Path(root), Path(root))
    (completion,) = read_completions(layout, StageName.MOE_TUNE)[0]
    assert completion.tuning
    (below,) = completion.artifacts
    path = layout.profiles / below
    path.write_text(json.dumps({**json.loads(path.read_text()), tokens: {**TOO_MUCH, "num_warps": 8, "num_stages": 4}}))
    listed = artifacts_of(layout.profiles, [below])
    tuning = completion.tuning.model_copy(update={"tuner_version": "4"}) if when == "earlier" else completion.tuning
    write_completion(layout, completion.model_copy(update={"artifacts": listed, "tuning": tuning}))


if __name__ == "__main__":
    main(*sys.argv[1:])
