"""Stands for sglang with its fused MoE layer; the rest is in the other stand-in."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[2] / "sglang_lib" / "sglang"))
