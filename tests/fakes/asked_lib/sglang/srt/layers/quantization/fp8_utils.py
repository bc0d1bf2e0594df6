"""FP8 products."""


def initialize_fp8_gemm_config(server_args):
    pass
