"""The flags. A release from 0.5.19 on keeps on the object what the operator gave, and resolves beside it."""

import argparse
import json
from pathlib import Path


class ServerArgs(argparse.Namespace):
    """What SGLang's parser gives."""


def prepare_server_args(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--tp-size", type=int, default=1)
    parser.add_argument("--attention-backend", default="fa3")
    parser.add_argument("--chunked-prefill-size", type=int, default=8192)
    named = ("host", "port", "mem-fraction-static", "load-format", "watchdog-timeout", "context-length", "api-key")
    for name in named:
        parser.add_argument(f"--{name}")
    for name in ("skip-tokenizer-init", "enable-metrics", "compile"):
        parser.add_argument(f"--{name}", action="store_true")
    print("a word of SGLang's own on the standard output")
    args = parser.parse_args(argv, namespace=ServerArgs())
    args.config = json.loads((Path(args.model_path) / "config.json").read_text())
    args.play = args.config.get("play", "")
    if args.play == "refuses":
        raise ValueError("a block of 128 does not divide\n192")
    args.pp_size = args.dp_size = args.ep_size = 1
    return args


def set_global_server_args_for_scheduler(args):
    pass
