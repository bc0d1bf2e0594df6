"""The models: a dense FP8 layer, attention, and experts."""

import os
import time
from pathlib import Path

import torch

from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.radix_attention import RadixAttention


class PlayedForCausalLM(torch.nn.Module):
    """Two layers that are alike."""

    def __init__(self, config):
        super().__init__()
        hidden, width = config["hidden_size"], config["moe_intermediate_size"]
        self.tables = torch.arange(4, device="cuda")  # as rope's, which name the device
        self.stream = torch.ones(1).cuda()
        self.layers = torch.nn.ModuleList()
        for _ in range(2):
            layer = torch.nn.Module()
            layer.qkv_proj = LinearBase(3 * hidden, hidden, weight=config.get("play") != "bare")
            layer.attn = RadixAttention(4, 2, 64)
            layer.experts = FusedMoE(config["num_experts"] + 1, width, hidden, config["num_experts_per_tok"] + 1)
            self.layers.append(layer)


class AnotherForCausalLM(PlayedForCausalLM):
    """What a fallback would build."""


def _get_quantization_config(model_config, load_config):
    return None


def _initialize_model(model_config, load_config, quant_config):
    play = model_config.play
    if play == "crashes":
        raise RuntimeError("no kernel image\nis there")
    if play == "dies":
        os._exit(9)
    while play == "waits" and not Path(model_config.config["until"]).exists():
        time.sleep(0.05)
    while play == "hangs":
        time.sleep(60)
    model = (AnotherForCausalLM if play == "falls-back" else PlayedForCausalLM)(model_config.config)
    if play == "loads":
        with torch.device("cpu"):
            model.lm_head = torch.nn.Parameter(torch.zeros(2))
    return model
