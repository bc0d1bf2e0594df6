"""Attention."""

import torch


class RadixAttention(torch.nn.Module):
    """Heads and widths alone."""

    def __init__(self, heads, kv_heads, width):
        super().__init__()
        self.tp_q_head_num, self.tp_k_head_num = heads, kv_heads
        self.qk_head_dim = self.v_head_dim = width
        self.sliding_window_size, self.logit_cap = -1, 0.0
