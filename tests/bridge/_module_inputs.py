"""Inputs of tests of modules."""

import torch
from torch import Tensor

DOUBLE = torch.float64


def randn(device: torch.device, *shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=DOUBLE, device=device)
