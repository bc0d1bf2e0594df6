"""A model's config, as SGLang reads it."""

from enum import Enum
from types import SimpleNamespace

import torch


class AttentionArch(Enum):
    MHA = 1


class ModelConfig:
    """The widths."""

    attention_arch = AttentionArch.MHA
    dtype = torch.bfloat16

    def __init__(self, args):
        self.play, self.config = args.play, args.config
        self.hf_config = SimpleNamespace(architectures=args.config["architectures"])

    @classmethod
    def from_server_args(cls, args):
        return cls(args)
