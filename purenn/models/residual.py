"""Residual blocks: each adds what it has learned to its own input, or to a linear map of that.

Names are those of torchvision's blocks. Convolutions have no bias, because a normalisation follows each.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from purenn import random
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.layers.scale import LearnableScale, learnable_scale
from purenn.models._parts import Images, he_conv2d, placed
from purenn.tree import Layer, applies, container, replace


@container
class BasicBlock(Layer):
    """Two 3 x 3 convolutions around which the input passes; see `basic_block`.

    Attributes:
        conv1: the first convolution, which has the block's stride.
        bn1: its normalisation.
        conv2: the second convolution.
        bn2: its normalisation.
        downsample: a 1 x 1 convolution and its normalisation, through which the input passes if its shape would not fit
            the sum; otherwise None.
    """

    expansion: ClassVar[int] = 1

    conv1: Conv2d
    bn1: BatchNorm2d
    conv2: Conv2d
    bn2: BatchNorm2d
    downsample: tuple[Conv2d, BatchNorm2d] | None

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolutions, which have no bias, from a normal distribution by fan-out.

        Args:
            key: random key.
            in_channels: channels of the input.
            channels: channels of the convolutions.
            stride: how many times smaller height and width become. Default: 1.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        where = placed(key, dtype, device)
        first_key, second_key, shortcut_key = random.split(key, 3)
        return cls(
            he_conv2d(first_key, in_channels, channels, 3, stride=stride, **where),
            BatchNorm2d.init(channels, **where),
            he_conv2d(second_key, channels, channels, 3, **where),
            BatchNorm2d.init(channels, **where),
            _init_shortcut(shortcut_key, in_channels, channels, stride, where),
        )


@applies(BasicBlock)
def basic_block(p: BasicBlock, x: Images, *, train: bool = False) -> tuple[Images, BasicBlock]:
    """``relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))``, where the shortcut is `x` itself if shapes allow.

    Args:
        p: the parameters.
        x: the input.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.

    Source:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016.
    """
    y, changed = _two_convolutions(p, x, train)
    shortcut, changed["downsample"] = _shortcut(p.downsample, x, train)
    return (y + shortcut).relu(), replace(p, **changed)


@container
class Bottleneck(Layer):
    """A 3 x 3 convolution between two of 1 x 1 that spare it channels; see `bottleneck`.

    Attributes:
        conv1: the 1 x 1 convolution to fewer channels.
        bn1: its normalisation.
        conv2: the 3 x 3 convolution, which has the block's stride.
        bn2: its normalisation.
        conv3: the 1 x 1 convolution to four times as many channels.
        bn3: its normalisation.
        downsample: as in `BasicBlock`.
    """

    expansion: ClassVar[int] = 4

    conv1: Conv2d
    bn1: BatchNorm2d
    conv2: Conv2d
    bn2: BatchNorm2d
    conv3: Conv2d
    bn3: BatchNorm2d
    downsample: tuple[Conv2d, BatchNorm2d] | None

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolutions; arguments are those of `BasicBlock.init`, and the result has ``4 * channels``."""
        where = placed(key, dtype, device)
        keys = random.split(key, 4)
        out_channels = channels * cls.expansion
        return cls(
            he_conv2d(keys[0], in_channels, channels, 1, **where),
            BatchNorm2d.init(channels, **where),
            he_conv2d(keys[1], channels, channels, 3, stride=stride, **where),
            BatchNorm2d.init(channels, **where),
            he_conv2d(keys[2], channels, out_channels, 1, **where),
            BatchNorm2d.init(out_channels, **where),
            _init_shortcut(keys[3], in_channels, out_channels, stride, where),
        )


@applies(Bottleneck)
def bottleneck(p: Bottleneck, x: Images, *, train: bool = False) -> tuple[Images, Bottleneck]:
    """As `basic_block`, with three convolutions."""
    y, changed = _two_convolutions(p, x, train)
    y, changed["bn3"] = batch_norm(p.bn3, conv2d(p.conv3, y.relu()), train=train)
    shortcut, changed["downsample"] = _shortcut(p.downsample, x, train)
    return (y + shortcut).relu(), replace(p, **changed)


@container
class ScaledResidualBlock(Layer):
    """A residual block that learns how much of itself to add; see `scaled_residual_block`.

    Attributes:
        conv1: the first convolution.
        bn1: its normalisation.
        conv2: the second convolution.
        bn2: its normalisation.
        scale: a factor and a summand for each channel of what is added.
    """

    conv1: Conv2d
    bn1: BatchNorm2d
    conv2: Conv2d
    bn2: BatchNorm2d
    scale: LearnableScale

    @classmethod
    def init(
        cls,
        key: Tensor,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolutions as `BasicBlock.init` does; the scale starts as the identity.

        Args:
            key: random key.
            channels: of input and output.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        block = BasicBlock.init(key, channels, channels, dtype=dtype, device=device)
        scale = LearnableScale.init(channels, **placed(key, dtype, device))
        return cls(block.conv1, block.bn1, block.conv2, block.bn2, scale)


@applies(ScaledResidualBlock)
def scaled_residual_block(
    p: ScaledResidualBlock, x: Images, *, train: bool = False
) -> tuple[Images, ScaledResidualBlock]:
    """``x + scale(bn2(conv2(relu(bn1(conv1(x))))))``, without a ReLU of the sum.

    Arguments, results and errors are those of `basic_block`.
    """
    y, changed = _two_convolutions(p, x, train)
    return x + learnable_scale(p.scale, y), replace(p, **changed)


def _init_shortcut(
    key: Tensor, in_channels: int, out_channels: int, stride: int, where: dict[str, Any]
) -> tuple[Conv2d, BatchNorm2d] | None:
    if stride == 1 and in_channels == out_channels:
        return None
    conv = he_conv2d(key, in_channels, out_channels, 1, stride=stride, **where)
    return conv, BatchNorm2d.init(out_channels, **where)


def _two_convolutions(p: Any, x: Tensor, train: bool) -> tuple[Tensor, dict[str, Any]]:
    # What all blocks begin with, and the fields that it changes.
    y, bn1 = batch_norm(p.bn1, conv2d(p.conv1, x), train=train)
    y, bn2 = batch_norm(p.bn2, conv2d(p.conv2, y.relu()), train=train)
    return y, {"bn1": bn1, "bn2": bn2}


def _shortcut(
    downsample: tuple[Conv2d, BatchNorm2d] | None, x: Tensor, train: bool
) -> tuple[Tensor, tuple[Conv2d, BatchNorm2d] | None]:
    if downsample is None:
        return x, None
    conv, norm = downsample
    y, norm = batch_norm(norm, conv2d(conv, x), train=train)
    return y, (conv, norm)
