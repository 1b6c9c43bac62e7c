"""Depthwise separable convolution: each channel by itself, then the channels of each pixel."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.layers.conv import Conv2d, PaddingMode, conv2d
from purenn.tree import Layer, applies, container


@container
class DepthwiseSeparableConv2d(Layer):
    """A convolution of images in two steps, with far fewer parameters than one that does both at once.

    Attributes:
        depthwise: the convolution of each channel by itself, with as many groups as channels.
        pointwise: the 1 x 1 convolution that mixes the channels.
    """

    depthwise: Conv2d
    pointwise: Conv2d

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Literal["same", "valid"] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw both convolutions as `Conv2d.init` does.

        Args:
            key: random key.
            in_channels: channels of the input.
            out_channels: channels of the result.
            kernel_size: size of the depthwise kernel; it and the next four are as in `Conv2d.init`.
            stride: how far it moves in each step.
            padding: how much is added on both sides of the input.
            dilation: distance between its elements.
            padding_mode: what is added.
            bias: whether both convolutions have a bias.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: the options do not fit each other.

        Source:
            Howard et al.: MobileNets, 2017.
        """
        depthwise_key, pointwise_key = random.split(key)
        depthwise = Conv2d.init(
            depthwise_key,
            in_channels,
            in_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=bias,
            padding_mode=padding_mode,
            dtype=dtype,
            device=device,
        )
        pointwise = Conv2d.init(pointwise_key, in_channels, out_channels, 1, bias=bias, dtype=dtype, device=device)
        return cls(depthwise, pointwise)


@applies(DepthwiseSeparableConv2d)
def depthwise_separable_conv2d(
    p: DepthwiseSeparableConv2d, x: Float[Tensor, "*batch in_channels height width"]
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Convolve `x` depthwise, then pointwise.

    Sizes are those of `conv2d` with the depthwise convolution's options.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    return conv2d(p.pointwise, conv2d(p.depthwise, x))
