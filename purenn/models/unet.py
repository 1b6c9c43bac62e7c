"""The U-Net: down to small feature maps and up again, each step up with the maps of the same size from the way down."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn import random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.conv_transpose import ConvTranspose2d, conv_transpose2d
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.layers.pooling import MaxPool2d
from purenn.models._parts import Images, he_conv2d, max_pooled, placed
from purenn.tree import Layer, applies, container, replace


@container
class ConvBlock(Layer):
    """Two 3 x 3 convolutions, each with a normalisation and a ReLU; see `conv_block`.

    Attributes:
        conv1: the first convolution, without bias, like the second.
        bn1: its normalisation.
        conv2: the second convolution.
        bn2: its normalisation.
    """

    conv1: Conv2d
    bn1: BatchNorm2d
    conv2: Conv2d
    bn2: BatchNorm2d

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolutions from a normal distribution by fan-out.

        Args:
            key: random key.
            in_channels: channels of the input.
            out_channels: channels of the result, which has the input's height and width.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        where = placed(key, dtype, device)
        first_key, second_key = random.split(key)
        return cls(
            he_conv2d(first_key, in_channels, out_channels, 3, **where),
            BatchNorm2d.init(out_channels, **where),
            he_conv2d(second_key, out_channels, out_channels, 3, **where),
            BatchNorm2d.init(out_channels, **where),
        )


@applies(ConvBlock)
def conv_block(p: ConvBlock, x: Images, *, train: bool = False) -> tuple[Images, ConvBlock]:
    """``relu(bn2(conv2(relu(bn1(conv1(x))))))``.

    Args:
        p: the parameters.
        x: the input.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    y, bn1 = batch_norm(p.bn1, conv2d(p.conv1, x), train=train)
    y, bn2 = batch_norm(p.bn2, conv2d(p.conv2, y.relu()), train=train)
    return y.relu(), replace(p, bn1=bn1, bn2=bn2)


@container
class DownBlock(Layer):
    """One step down; see `down_block`.

    Attributes:
        conv: the convolutions.
        pool: what halves height and width after them.
    """

    conv: ConvBlock
    pool: MaxPool2d

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolutions; arguments are those of `ConvBlock.init`."""
        return cls(ConvBlock.init(key, in_channels, out_channels, dtype=dtype, device=device), MaxPool2d(2))


@applies(DownBlock)
def down_block(p: DownBlock, x: Images, *, train: bool = False) -> tuple[tuple[Images, Images], DownBlock]:
    """Convolve, and pool the result.

    Arguments and errors are those of `conv_block`.

    Returns:
        The pair of the maps before pooling, which the way up needs, and those after it; and the container with the new
        averages.
    """
    skip, conv = conv_block(p.conv, x, train=train)
    return (skip, max_pooled(p.pool, skip)), replace(p, conv=conv)


@container
class UpBlock(Layer):
    """One step up; see `up_block`.

    Attributes:
        up: the transposed convolution that doubles height and width.
        conv: the convolutions of its result together with the maps from the way down.
    """

    up: ConvTranspose2d
    conv: ConvBlock

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the transposed convolution as `ConvTranspose2d.init` does, the others as `ConvBlock.init`.

        Args:
            key: random key.
            in_channels: channels of the input.
            out_channels: channels of the maps from the way down, and of the result.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        where = placed(key, dtype, device)
        up_key, conv_key = random.split(key)
        return cls(
            ConvTranspose2d.init(up_key, in_channels, out_channels, 2, stride=2, **where),
            ConvBlock.init(conv_key, 2 * out_channels, out_channels, **where),
        )


@applies(UpBlock)
def up_block(p: UpBlock, x: Images, skip: Images, *, train: bool = False) -> tuple[Images, UpBlock]:
    """Enlarge `x`, put it behind the maps from the way down, and convolve both.

    Args:
        p: the parameters.
        x: the input.
        skip: the maps from the way down, with twice the height and width of `x`.
        train: as in `conv_block`.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: an input has another number of dimensions or channels, or the sizes do not fit.
    """
    y = conv_transpose2d(p.up, x)
    if y.shape[-2:] != skip.shape[-2:]:
        raise ShapeError(
            f"up_block: skip must have the size {list(y.shape[-2:])}, twice that of x of shape {list(x.shape)}, got "
            f"shape {list(skip.shape)}. Pad the images to a multiple of 2 for each step down, as unet does."
        )
    y, conv = conv_block(p.conv, torch.cat((skip, y), 1), train=train)
    return y, replace(p, conv=conv)


@container
class UNet(Layer):
    """Steps down, the bottom, as many steps up; see `unet`.

    Attributes:
        down: the steps down, in order.
        bottom: the convolutions of the smallest maps.
        up: the steps up, in order.
        out: the 1 x 1 convolution to the results.
    """

    down: tuple[DownBlock, ...]
    bottom: ConvBlock
    up: tuple[UpBlock, ...]
    out: Conv2d

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        depth: int = 3,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters. From one channel to one channel there are 7,699,009 by default.

        Args:
            key: random key.
            in_channels: channels of the images.
            out_channels: channels of the results.
            width: channels after the first step; every further one doubles them. Default: 64.
            depth: number of steps down. Default: 3.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: there is no step.
        """
        if depth < 1:
            raise ArgumentError(f"UNet.init: depth is the number of steps down and must be at least 1, got {depth}.")
        where = placed(key, dtype, device)
        keys = random.split(key, 2 * depth + 2)
        channels = [in_channels, *(width * 2**step for step in range(depth + 1))]
        return cls(
            tuple(DownBlock.init(keys[step], *channels[step : step + 2], **where) for step in range(depth)),
            ConvBlock.init(keys[-1], *channels[-2:], **where),
            tuple(
                UpBlock.init(keys[depth + step], channels[-1 - step], channels[-2 - step], **where)
                for step in range(depth)
            ),
            Conv2d.init(keys[-2], width, out_channels, 1, **where),
        )


@applies(UNet)
def unet(
    p: UNet, x: Float[Tensor, "batch in_channels height width"], *, train: bool = False
) -> tuple[Float[Tensor, "batch out_channels height width"], UNet]:
    """A number, or several, for every pixel.

    Sizes that cannot be halved in every step are filled up with zeros below and on the right, and the result is cropped
    to the images' size.

    Args:
        p: the parameters.
        x: the images, of any size.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The result, and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.

    Source:
        Ronneberger, Fischer, Brox: U-Net, 2015; with padded convolutions and batch normalisation.
    """
    height, width = x.shape[-2:]
    multiple = 2 ** len(p.down)
    x = F.pad(x, (0, -width % multiple, 0, -height % multiple))
    skips, down, up = [], [], []
    for step in p.down:
        (skip, x), new = down_block(step, x, train=train)
        skips.append(skip)
        down.append(new)
    x, bottom = conv_block(p.bottom, x, train=train)
    for step, skip in zip(p.up, reversed(skips), strict=True):
        x, new = up_block(step, x, skip, train=train)
        up.append(new)
    return conv2d(p.out, x)[..., :height, :width], replace(p, down=tuple(down), bottom=bottom, up=tuple(up))
