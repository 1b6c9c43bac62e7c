"""What the models for images share: how their parts are drawn, and how stateful members follow one another."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import initializers
from purenn.layers.conv import Conv2d
from purenn.layers.pooling import MaxPool2d, max_pool2d
from purenn.tree._applies import binding_of

Images = Float[Tensor, "batch channels height width"]


def placed(key: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> dict[str, Any]:
    """The options that say where all parts of a model go; also parts that take no key go to the key's device."""
    return {"dtype": dtype, "device": key.device if device is None else device}


def he_conv2d(
    key: Tensor,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    bias: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Conv2d:
    """A convolution as residual networks have it: normal weights by fan-out, no bias, at stride 1 the size is kept.

    Args:
        key: random key.
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: height and width of the kernel, an odd number.
        stride: how far it moves in each step. Default: 1.
        bias: whether there is a bias, which starts at 0. Default: False.
        dtype: of the parameters; torch's default dtype if None.
        device: of the parameters; the key's device if None.
    """
    shape = (out_channels, in_channels, kernel_size, kernel_size)
    weight = initializers.kaiming_normal(key, shape, mode="fan_out", nonlinearity="relu", dtype=dtype, device=device)
    zeros = torch.zeros(out_channels, dtype=weight.dtype, device=weight.device) if bias else None
    return Conv2d(weight, zeros, stride=(stride, stride), padding=(kernel_size // 2, kernel_size // 2))


def max_pooled(p: MaxPool2d, x: Tensor) -> Tensor:
    """What `max_pool2d` gives for a pooling that returns no indices."""
    y = max_pool2d(p, x)
    assert isinstance(y, Tensor)
    return y


def in_order(members: Iterable[Any], x: Tensor, *, train: bool) -> tuple[Tensor, tuple[Any, ...]]:
    """The output of stateful members, each applied to the output of the one before, and the members' new versions."""
    new = []
    for member in members:
        binding = binding_of(member)
        assert binding is not None
        x, member = binding.layer(member, x, train=train)
        new.append(member)
    return x, tuple(new)
