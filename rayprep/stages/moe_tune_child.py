"""The child process of the `moe_tune` stage: tunes SGLang's fused MoE kernel on this host's GPUs.

    python -P -m rayprep.stages.moe_tune_child REQUEST.json

It imports neither torch nor sglang: its own children do. Answers in lines of JSON on standard output
(`moe_tune_protocol`); everything else goes to standard error.
"""

import os
import sys
import traceback
from pathlib import Path

from rayprep.model.base import Record, read_tolerant
from rayprep.stages.child_lines import claim_stdout
from rayprep.stages.moe_log import MeasurementLog
from rayprep.stages.moe_tune_protocol import TuneRequest, failure
from rayprep.stages.moe_tuner import ProcessBench, Tuner


def main(arguments: list[str]) -> int:
    """Runs one request. Returns the exit code."""
    lines = claim_stdout()

    def emit(line: Record) -> None:
        print(line.model_dump_json(), file=lines, flush=True)

    try:
        request = read_tolerant(TuneRequest, Path(arguments[0]).read_bytes())
        if os.environ.get("TRITON_CACHE_DIR") != request.kernels:
            raise ValueError("TRITON_CACHE_DIR is not the request's folder for kernels")
        log = MeasurementLog(Path(request.log))
        bench = ProcessBench(request)
        try:
            emit(Tuner(request, bench, log, emit).go())
        finally:
            bench.close()
    except Exception as error:  # noqa: BLE001 - whatever stopped it is the parent's to report
        traceback.print_exc()
        emit(failure(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
