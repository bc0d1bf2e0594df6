"""What the tests of stages build with, where nothing but the stage itself is looked at."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rayprep.host.layout import Layout
from rayprep.host.means import Means, read_means
from rayprep.model.process_end import Cleanup
from rayprep.stages.protocol import BuildContext, Report

MEANS = read_means(os.environ, None)


def means(environ: Mapping[str, str]) -> Means:
    """This host's, but for the environment."""
    return replace(MEANS, environ=environ)


def never() -> bool:
    return False


def build_context(
    layout: Layout,
    log: Path,
    scratch: Path,
    env: Mapping[str, str],
    ended: Callable[[Cleanup], None],
    *,
    cancelled: Callable[[], bool] = never,
    report: Report = lambda *_: None,
    deadline_s: float = 60,
) -> BuildContext:
    """Without a GPU or a lock. `env` comes on top of the test's own."""
    return BuildContext(
        layout=layout,
        log=log,
        scratch=scratch,
        env={**os.environ, **env},
        gpus=(),
        lock_descriptors=(),
        deadline=time.monotonic() + deadline_s,
        cancelled=cancelled,
        report=report,
        tick=lambda: None,
        ended=ended,
    )
