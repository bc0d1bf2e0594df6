"""What a server's log says of its MoE configs."""

from pathlib import PurePath

import pytest

from rayprep.sglang.log import LogReader
from rayprep.sglang.moe_config_lines import MoeConfigs, complaint

NAME = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"
HOME = "/p/moe_configs/configs/triton_3_6_0"


def read(*lines: str) -> MoeConfigs:
    reader = LogReader()
    for line in lines:
        reader.hear(line)
    return reader.moe_configs


def test_every_rank_says_it_and_once_is_enough() -> None:
    line = f"[2026-11-21 16:40:17] Using MoE kernel config from {HOME}/{NAME}."
    assert read(line, "something else", line) == MoeConfigs(used=(f"{HOME}/{NAME}",))
    assert read(f"Using MoE kernel config: {NAME}") == MoeConfigs(used=(NAME,)), "the contract's wording"


@pytest.mark.parametrize("root", ["/data/my.json.d", "/data/my.json", "/a.json/b.json.c"])
def test_a_folder_on_the_way_may_have_json_in_its_name(root: str) -> None:
    path = f"{root}{HOME}/{NAME}"
    assert read(f"[t] Using MoE kernel config from {path}.") == MoeConfigs(used=(path,))
    missed = read(f"Config file not found at {path}. Fallback to triton version 3.4.0 and use one from {root}/x.json.")
    assert missed == MoeConfigs(missed=(path,))


def test_a_fallback_is_no_use() -> None:
    said = read(
        f"Config file not found at {HOME}/{NAME}. Fallback to triton version 3.4.0 and use MoE kernel config from "
        f"/p/moe_configs/configs/triton_3_4_0/{NAME}. Performance might be sub-optimal!"
    )
    assert said == MoeConfigs(missed=(f"{HOME}/{NAME}",))
    default = read(
        "Using default MoE kernel config. Performance might be sub-optimal! "
        f"Config file not found at {HOME}/{NAME}, you can create them with https://github.com/"
    )
    assert default == MoeConfigs(missed=(f"{HOME}/{NAME}",))


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        (f"{HOME}/{NAME}", True),
        (f"/elsewhere/moe_configs/configs/triton_3_6_0/{NAME}", True),  # as a container's mount has it
        (NAME, True),  # the contract's wording
        (f"/site/sglang/srt/layers/moe/moe_runner/triton_utils/configs/triton_3_6_0/{NAME}", False),
        (f"/p/moe_configs/configs/triton_3_5_1/{NAME}", False),
        (f"{HOME}/E=1.json", False),
    ],
)
def test_the_file_that_ships_with_sglang_is_called_the_same_and_is_not_ours(said: str, ours: bool) -> None:
    assert read(f"Using MoE kernel config from {said}.").uses(PurePath(HOME, NAME)) is ours


def test_the_complaint_names_what_the_server_wanted() -> None:
    tuned = PurePath("/p/moe_configs/configs/triton_3_6_0/E=1.json")
    assert complaint(tuned, MoeConfigs()) == (
        'no "Using MoE kernel config from .../moe_configs/configs/triton_3_6_0/E=1.json" in the server\'s log'
    )
    assert complaint(tuned, MoeConfigs(missed=("E=2.json",))).endswith("; it looked for E=2.json")
    assert complaint(tuned, MoeConfigs(used=("E=3.json",), missed=("E=2.json",))).endswith("; it uses E=3.json")
