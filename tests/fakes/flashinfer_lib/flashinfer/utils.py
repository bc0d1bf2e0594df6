"""With FAKE_NEWER, what flashinfer says of FA3 since 0.6.17."""

import os

if "FAKE_NEWER" in os.environ:

    def is_fa3_prefill_head_dim_supported(head_dim_qk: int, head_dim_vo: int) -> bool:
        return head_dim_qk == head_dim_vo and head_dim_qk in {64, 128, 256}
