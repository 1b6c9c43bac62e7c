"""The first values that linear layers and convolutions share."""

import math
from functools import partial

import torch
from torch import Tensor

from purenn import initializers, random


def draw_weight_and_bias(
    key: Tensor,
    weight_shape: tuple[int, ...],
    bias_size: int | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, both from U(-k, k) with ``k = 1 / sqrt(fan_in)``, which is torch's default.

    Args:
        key: random key.
        weight_shape: shape of the weight; all dimensions but the first make up its fan-in.
        bias_size: length of the bias, None for no bias.
        dtype: of both; torch's default dtype if None.
        device: of both; the key's device if None.
    """
    weight_key, bias_key = random.split(key)
    fan_in = math.prod(weight_shape[1:])
    draw = partial(initializers.fan_in_uniform, fan_in=fan_in, dtype=dtype, device=device)
    return draw(weight_key, weight_shape), None if bias_size is None else draw(bias_key, (bias_size,))
