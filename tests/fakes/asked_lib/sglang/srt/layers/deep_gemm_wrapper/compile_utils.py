"""The sweep over the numbers of rows, in its short form."""

_BUILTIN_M_LIST = []


def update_deep_gemm_config(gpu_id, server_args):
    _BUILTIN_M_LIST.extend([*range(1, 1025), *range(1026, 2048, 2), 2048])
