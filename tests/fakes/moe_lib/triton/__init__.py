"""Stands for Triton: what of it the MoE tuner touches. Kernels are in the stand-in of sglang."""

from triton import knobs as knobs

__version__ = "3.6.0"
