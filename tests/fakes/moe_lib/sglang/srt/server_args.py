from typing import NamedTuple


class ServerArgs(NamedTuple):
    model_path: str


def set_global_server_args_for_scheduler(args: ServerArgs) -> None:
    assert args.model_path == "dummy"
