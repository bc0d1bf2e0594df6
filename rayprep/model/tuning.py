"""How a MoE kernel was tuned, as results and completions tell it."""

from rayprep.base.records import FINITE, Record

OF_A_SCRIPT = "that of "
"""Before its path, where a script tuned: what `grid` is."""


class TunedSize(Record):
    """What tuning came to for one number of tokens."""

    model_config = FINITE

    batch_size: int
    default_us: float | None
    """Of SGLang's own config, in microseconds for one call of the MoE layer. Null where it cannot run."""
    tuned_us: float | None
    speedup: float | None
    """`default_us / tuned_us`; 1 where the default is kept."""
    config: dict[str, int | bool] | None
    """Null where nothing was faster than the default, which is then what the file says."""


class RefusedEntry(Record):
    """An entry that a server could not have launched, and is not in the file."""

    batch_size: int
    config: dict[str, int | bool]
    error: str
    """Of the launch, with how many tokens."""
    own_runs: bool
    """SGLang's own values are there in its place; else those of the neighbouring entries count."""


class TuningCounts(Record):
    """What a tuning came to. Times in seconds."""

    model_config = FINITE

    gpus: int = 0
    """On which it was measured, side by side, or its file tried; 0 in what an earlier rayprep wrote of a script."""
    measured: int = 0
    reused: int = 0
    """Measurements that an earlier run, which was stopped, had made."""
    failed: int = 0
    """Configs, times batch sizes, that cannot be compiled or run here."""
    compiled: int = 0
    """Kernels, of which a config has two for each way that a number of tokens specialises it."""
    served: int = 0
    """Kernels of what was chosen, compiled into the servers' cache ahead."""
    setup_s: float = 0.0
    compile_s: float = 0.0
    measure_s: float = 0.0


class Tuning(TuningCounts):
    """How the MoE kernel was tuned, as far as it decides the outcome, and what came of it."""

    tuner_version: str | None
    """Null where a script tuned, as the seed is."""
    strategy: str
    grid: str
    dtype: str
    seed: int | None
    sizes: tuple[TunedSize, ...]

    @property
    def tuner(self) -> str:
        """Who made the config file: `rayprep`, or the script."""
        return self.grid.removeprefix(OF_A_SCRIPT) if self.tuner_version is None else "rayprep"
