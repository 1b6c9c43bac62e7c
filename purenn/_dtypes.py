"""Conversions that cost nothing where there is nothing to convert."""

import torch
from torch import Tensor


def in_dtype(dtype: torch.dtype, x: Tensor) -> Tensor:
    """A tensor in a dtype."""
    # A call of torch takes its time even if it changes nothing, above all under vmap.
    return x if x.dtype is dtype else x.to(dtype)
