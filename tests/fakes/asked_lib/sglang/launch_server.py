"""`python -m sglang.launch_server` is tests/fakes/sglang_server.py."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[2] / "sglang_server.py"), run_name="__main__")
