"""Where the groups are made."""

from sglang.srt.distributed import parallel_state


def _init_parallel_groups(*, backend, model_config, tp_size, pp_size):
    assert (backend, pp_size) == ("fake", 1)
    parallel_state.make({"tp": 1 if model_config.play == "forgets" else tp_size})
