"""Layers that exchange channels for pixels, or channels among themselves; none of them computes anything."""

from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

from purenn.errors import ShapeError
from purenn.tree import Layer, applies, container, static


@container
class PixelShuffle(Layer):
    """Blocks of ``upscale_factor ** 2`` channels become squares of pixels, the inverse of `PixelUnshuffle`.

    Attributes:
        upscale_factor: by how much height and width grow.
    """

    upscale_factor: int = static()


@applies(PixelShuffle)
def pixel_shuffle(
    p: PixelShuffle, x: Shaped[Tensor, "*batch channels height width"]
) -> Shaped[Tensor, "*batch out_channels out_height out_width"]:
    """``[*, channels * r * r, height, width]`` becomes ``[*, channels, height * r, width * r]``, r the factor.

    Raises:
        ShapeError: `x` has less than three dimensions, or channels that are no multiple of ``r * r``.

    Source:
        Shi et al.: Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
        Network, 2016.
    """
    factor = p.upscale_factor
    if x.ndim < 3 or factor < 1 or x.size(-3) % factor**2:
        raise ShapeError(
            f"pixel_shuffle: x must be [*batch, channels, height, width] with a multiple of upscale_factor ** 2 = "
            f"{factor**2} channels, got shape {list(x.shape)}."
        )
    if not x.numel():
        # torch's derivative of an empty input has the result's shape.
        *batch, channels, height, width = x.shape
        return x.reshape(*batch, channels // factor**2, height * factor, width * factor)
    return F.pixel_shuffle(x, factor)


@container
class PixelUnshuffle(Layer):
    """Squares of pixels become channels, the inverse of `PixelShuffle`.

    Attributes:
        downscale_factor: by how much height and width shrink.
    """

    downscale_factor: int = static()


@applies(PixelUnshuffle)
def pixel_unshuffle(
    p: PixelUnshuffle, x: Shaped[Tensor, "*batch channels height width"]
) -> Shaped[Tensor, "*batch out_channels out_height out_width"]:
    """``[*, channels, height * r, width * r]`` becomes ``[*, channels * r * r, height, width]``, r the factor.

    Raises:
        ShapeError: `x` has less than three dimensions, or a height or width that is no multiple of r.
    """
    factor = p.downscale_factor
    if x.ndim < 3 or factor < 1 or x.size(-1) % factor or x.size(-2) % factor:
        raise ShapeError(
            f"pixel_unshuffle: x must be [*batch, channels, height, width] with height and width multiples of "
            f"downscale_factor={factor}, got shape {list(x.shape)}."
        )
    if not x.numel():
        *batch, channels, height, width = x.shape
        return x.reshape(*batch, channels * factor**2, height // factor, width // factor)
    return F.pixel_unshuffle(x, factor)


@container
class ChannelShuffle(Layer):
    """Channels of different groups side by side, so that a grouped convolution after it sees all groups.

    Attributes:
        groups: number of groups; it divides the number of channels.
    """

    groups: int = static()


@applies(ChannelShuffle)
def channel_shuffle(
    p: ChannelShuffle, x: Shaped[Tensor, "batch channels *space"]
) -> Shaped[Tensor, "batch channels *space"]:
    """Channels ``0, 1, 2, 3, 4, 5`` in two groups become ``0, 3, 1, 4, 2, 5``; they are in dimension 1.

    Raises:
        ShapeError: `x` has less than three dimensions, or channels that are no multiple of ``p.groups``.

    Source:
        Zhang et al.: ShuffleNet, 2017.
    """
    if x.ndim < 3 or p.groups < 1 or x.size(1) % p.groups:
        raise ShapeError(
            f"channel_shuffle: x must be [batch, channels, *space] with a multiple of groups={p.groups} channels, got "
            f"shape {list(x.shape)}. An input without a batch dimension needs x.unsqueeze(0)."
        )
    return F.channel_shuffle(x, p.groups)
