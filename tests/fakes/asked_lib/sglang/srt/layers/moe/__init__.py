"""What the scheduler tells the layers."""


def initialize_moe_config(server_args):
    pass
