"""The child process of the `moe_tune` stage: tunes SGLang's fused MoE kernel on this host's GPUs.

    python -P -m rayprep.stages.moe_tune.child REQUEST.json

It imports neither torch nor sglang: its own children do. Answers in lines of JSON on standard output
(`child.lines`); everything else goes to standard error.
"""

import os
import sys
from functools import partial
from pathlib import Path

from rayprep.base.errors import ErrorType
from rayprep.stages.child.failures import failure
from rayprep.stages.child.lines import Emit, answer
from rayprep.stages.moe_tune.measurement_log import MeasurementLog
from rayprep.stages.moe_tune.process_bench import ProcessBench
from rayprep.stages.moe_tune.protocol import TunedLine, TuneRequest
from rayprep.stages.moe_tune.tuner import Tuner


def main(arguments: list[str]) -> int:
    """Runs one request. Returns the exit code."""
    return answer(arguments, TuneRequest, _tune, partial(failure, otherwise=ErrorType.TUNER_EXECUTION_ERROR))


def _tune(request: TuneRequest, emit: Emit) -> TunedLine:
    if os.environ.get("TRITON_CACHE_DIR") != request.kernels:
        raise ValueError("TRITON_CACHE_DIR is not the request's folder for kernels")
    log = MeasurementLog(Path(request.log))
    bench = ProcessBench(request)
    try:
        return Tuner(request, bench, log, emit).go()
    finally:
        bench.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
