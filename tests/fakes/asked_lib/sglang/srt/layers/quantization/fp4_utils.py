"""FP4 products. A newer release wants to be told more."""

import os

if os.environ.get("PLAY_NEWER"):

    def initialize_fp4_gemm_config(server_args, planner):
        pass

else:

    def initialize_fp4_gemm_config(server_args):
        pass
