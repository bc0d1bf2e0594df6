"""Experts."""

from enum import Enum
from types import SimpleNamespace

import torch


class MoeRunnerBackend(Enum):
    TRITON = "triton"


class UnquantizedFusedMoEMethod:
    """In bfloat16, by Triton."""

    quant_config = None
    runner = SimpleNamespace(runner_backend=MoeRunnerBackend.TRITON)


class FusedMoE(torch.nn.Module):
    """w13 [E, 2 N, K] and w2 [E, K, N]."""

    def __init__(self, experts, width, hidden, top_k):
        super().__init__()
        self.num_experts, self.top_k, self.num_fused_shared_experts = experts, top_k, 1
        self.quant_method = UnquantizedFusedMoEMethod()
        self.moe_runner_config = SimpleNamespace(is_gated=True, activation="silu")
        self.w13_weight = torch.nn.Parameter(torch.empty(experts, 2 * width, hidden, dtype=torch.bfloat16))
        self.w2_weight = torch.nn.Parameter(torch.empty(experts, hidden, width, dtype=torch.bfloat16))
