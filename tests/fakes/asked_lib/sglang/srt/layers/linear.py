"""Linear layers."""

import torch


def deepgemm_w8a8_block_fp8_linear_with_fallback():
    pass


class Fp8LinearMethod:
    """Block-wise."""

    block_quant = True
    w8a8_block_fp8_linear = staticmethod(deepgemm_w8a8_block_fp8_linear_with_fallback)


class LinearBase(torch.nn.Module):
    """A weight [N, K]."""

    def __init__(self, n, k, weight=True):
        super().__init__()
        self.quant_method = Fp8LinearMethod()
        if weight:
            shape = torch.empty(n, k, dtype=torch.float8_e4m3fn)
            self.weight = torch.nn.Parameter(shape, requires_grad=False)
