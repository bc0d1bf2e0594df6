"""The name of a tuned config."""


def get_config_file_name(E, N, dtype, block_shape, per_channel_quant, down_moe):
    return f"E={E},N={N},device_name=NVIDIA_H200.json"
