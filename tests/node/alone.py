"""`ensure` as an agent carries it out, without a driver and so without Ray: for what a host does by itself.

    python -m tests.node.alone PROFILES_ROOT TELEMETRY_ROOT RUN_ID [TIMEOUT_S]

Builds tiny-dense at batch size 1 on the CPU, and exits as `rayprep ensure` would.
"""

import os
import sys

from rayprep.model.spec import resolve
from rayprep.node import NodeRequest, ensure
from rayprep.report.session_log import SessionLog


def main(profiles: str, telemetry: str, run_id: str, timeout_s: str = "120") -> int:
    asked = {"model": "tiny-dense", "batch_sizes": [1], "device": "cpu", "timeout_s": float(timeout_s)}
    request = NodeRequest(resolved=resolve(asked), run_id=run_id, profiles_root=profiles, telemetry_root=telemetry)
    log = SessionLog(request.layout.session_log(run_id))
    return ensure(request, dict(os.environ), log.record).exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
