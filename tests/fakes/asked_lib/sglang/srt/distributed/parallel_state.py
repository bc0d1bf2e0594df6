"""The groups of ranks."""

from types import SimpleNamespace

import torch

_SIZES = {}


def set_custom_all_reduce(wanted):
    assert wanted is False


def make(sizes):
    torch.distributed.new_group([0], backend="gloo")  # which would wait for its peers
    assert torch.ones(1, device="cuda").is_meta
    _SIZES.update(sizes)


def get_tp_group():
    return SimpleNamespace(world_size=_SIZES["tp"])


def get_pp_group():
    return SimpleNamespace(world_size=1)
