"""A stand-in for the package sglang as far as its loader can be asked what a server needs.

`"play"` in a model's config.json says which release or fault it plays.
"""

__version__ = "0.5.16"

import torch

torch.cuda.get_device_name = lambda *_: "NVIDIA H200"
