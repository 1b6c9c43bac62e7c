"""What the tests of pooling and of unpooling share."""

from typing import Any

import pytest
import torch
from _reference import numbers
from hypothesis import strategies as st
from torch import Tensor, nn

from purenn import layers

SPATIAL = {1: (9,), 2: (8, 9), 3: (6, 7, 8)}
DIMENSIONS = pytest.mark.parametrize("dimensions", [1, 2, 3])


def find(family: str, dimensions: int) -> tuple[Any, Any, Any]:
    """The container, the function and torch's module of a family such as MaxPool."""
    snake = {
        "MaxPool": "max_pool",
        "AvgPool": "avg_pool",
        "LPPool": "lp_pool",
        "AdaptiveMaxPool": "adaptive_max_pool",
        "AdaptiveAvgPool": "adaptive_avg_pool",
        "MaxUnpool": "max_unpool",
        "FractionalMaxPool": "fractional_max_pool",
    }
    name = f"{family}{dimensions}d"
    return getattr(layers, name), getattr(layers, f"{snake[family]}{dimensions}d"), getattr(nn, name)


def draw_input(data: st.DataObject, dimensions: int, device: torch.device) -> Tensor:
    """A batch or a single input."""
    batch = data.draw(st.sampled_from([(), (1,), (2,)]))
    return numbers(*batch, 2, *SPATIAL[dimensions], seed=data.draw(st.integers(0, 9)), device=device)
