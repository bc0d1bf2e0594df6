"""The architectures that the tests of the decode step take, and requests to the child that compiles it."""

from pathlib import Path

from rayprep.sglang.architecture import Architecture, parse_architecture
from rayprep.stages.inductor.protocol import DecodeRequest

CONFIGS = Path(__file__).parents[3] / "rayprep" / "configs"


def shipped(name: str) -> Architecture:
    return parse_architecture((CONFIGS / name / "config.json").read_text(), name)


DENSE, MOE = shipped("tiny-dense"), shipped("tiny-moe")
SMALL = DENSE.model_copy(update={"num_hidden_layers": 1})


def request(mode: str, cache: Path, architecture: Architecture = SMALL) -> DecodeRequest:
    return DecodeRequest(
        mode=mode,
        architecture=architecture,
        tp=1,
        batch_sizes=(1,),
        max_seq_len=16,
        device="cpu",
        cache_dir=str(cache),
    )
