"""With FAKE_NEWER, the generators of flashinfer 0.7.1 that only its own prefill calls."""

import os

import torch

from flashinfer.jit import JitSpec, batch_prefill_name, generated

if "FAKE_NEWER" in os.environ:

    def _gen_batch_prefill_primary_module(
        backend: str, dtype_q: torch.dtype, dtype_kv: torch.dtype, *rest: object
    ) -> JitSpec:
        assert backend == "fa2"
        return generated(f"{batch_prefill_name(dtype_q, dtype_kv)}_kv_stride_equal")

    def _gen_batch_prefill_independent_paged_module(
        backend: str, dtype_q: torch.dtype, dtype_kv: torch.dtype, *rest: object
    ) -> JitSpec:
        return generated(f"{batch_prefill_name(dtype_q, dtype_kv)}_paged_kv_stride_independent")
