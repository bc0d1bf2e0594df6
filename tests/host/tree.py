"""A program that becomes a tree of processes: `python tree.py DEPTH [deaf] [daemon] [silent] [respawn]`

Every process of it prints its pid and then sleeps. Each level is a session of its own. `deaf` ones do not hear
SIGTERM; `daemon` ones fork twice, so that their parent is not the one that made them; `silent` ones close their
output; `respawn` ones answer SIGTERM with a new process.
"""

import os
import signal
import subprocess
import sys
import time

DEPTH, HABITS = int(sys.argv[1]), sys.argv[2:]


def start_below() -> None:
    command = [sys.executable, "-I", "-S", __file__, str(DEPTH - 1), *HABITS]
    if "daemon" in HABITS:
        if os.fork() == 0:
            subprocess.Popen(command, start_new_session=True)
            os._exit(0)
        os.wait()
    else:
        subprocess.Popen(command, start_new_session=True)


def respawn(*_: object) -> None:
    subprocess.Popen([sys.executable, "-I", "-S", __file__, "1", "deaf"], start_new_session=True)
    os._exit(0)


if "deaf" in HABITS:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "respawn" in HABITS:
    signal.signal(signal.SIGTERM, respawn)
print(os.getpid(), flush=True)
if DEPTH > 1:
    start_below()
if "silent" in HABITS:
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
time.sleep(120)
