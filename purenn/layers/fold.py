"""Unfolding an image into the columns of its windows, and adding such columns up to an image again.

`Unfold` gathers each window that a convolution would see into a column; `Fold` puts every column back to its place and
adds where windows overlap. Each is the other's transpose, so the derivative of one is the other.
"""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn.errors import ShapeError
from purenn.layers._spatial import Sizes, check_images, per_dimension
from purenn.tree import Layer, applies, container, static


@container
class Unfold(Layer):
    """The windows of an image as columns; sizes are one number or ``(height, width)``.

    Attributes:
        kernel_size: size of the window.
        dilation: distance between the window's elements.
        padding: how many zeros are added on both sides.
        stride: how far the window moves in each step.
    """

    kernel_size: Sizes = static()
    dilation: Sizes = static(default=1)
    padding: Sizes = static(default=0)
    stride: Sizes = static(default=1)


@applies(Unfold)
def unfold(
    p: Unfold, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels_times_kernel windows"]:
    """Gather the windows of `x`, ``[batch, channels, height, width]`` or ``[channels, height, width]``.

    Returns:
        ``[batch, channels * kernel elements, windows]``, or the same without batch. Windows are counted row by row,
        ``floor((size + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1)`` in each dimension.

    Raises:
        ShapeError: `x` has another number of dimensions, or is smaller than a window.
    """
    try:
        return F.unfold(x, p.kernel_size, p.dilation, p.padding, p.stride)
    except (RuntimeError, IndexError) as error:
        # Looked into only after the fact, here and in `fold`: what fits costs nothing more.
        check_images("unfold", x)
        if min(_windows(p, x.shape[-2:])) < 1:
            raise ShapeError(
                f"unfold: no window fits into x of shape {list(x.shape)}: kernel_size={p.kernel_size}, "
                f"dilation={p.dilation}, padding={p.padding}."
            ) from error
        raise


@container
class Fold(Layer):
    """Columns added up to an image, each at the place of its window; sizes are one number or ``(height, width)``.

    Attributes:
        output_size: size of the image.
        kernel_size: size of the window.
        dilation: distance between the window's elements.
        padding: how much is cut off from both sides of the image, since `Unfold` added it.
        stride: how far the window moves in each step.
    """

    output_size: Sizes = static()
    kernel_size: Sizes = static()
    dilation: Sizes = static(default=1)
    padding: Sizes = static(default=0)
    stride: Sizes = static(default=1)


@applies(Fold)
def fold(
    p: Fold, x: Float[Tensor, "*batch channels_times_kernel windows"]
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Add up the columns of `x`, ``[batch, channels * kernel elements, windows]`` or the same without batch.

    Raises:
        ShapeError: the columns have another length than windows can have, or there is another number of them.
    """
    try:
        return F.fold(x, p.output_size, p.kernel_size, p.dilation, p.padding, p.stride)
    except (RuntimeError, IndexError) as error:
        elements = math.prod(per_dimension("fold: kernel_size", p.kernel_size, 2))
        windows = _windows(p, per_dimension("fold: output_size", p.output_size, 2))
        if x.ndim not in (2, 3) or x.size(-2) % elements or x.size(-1) != windows[0] * windows[1]:
            raise ShapeError(
                f"fold: x must be [*batch, channels * {elements}, {windows[0] * windows[1]}] ({windows[0]} x "
                f"{windows[1]} windows of {elements} elements), got shape {list(x.shape)}. Check output_size="
                f"{p.output_size} and the options: they must be those of the Unfold."
            ) from error
        raise


def _windows(p: Fold | Unfold, size: tuple[int, ...]) -> list[int]:
    kernel_size, dilation, padding, stride = (
        per_dimension(name, value, 2)
        for name, value in (
            ("kernel_size", p.kernel_size),
            ("dilation", p.dilation),
            ("padding", p.padding),
            ("stride", p.stride),
        )
    )
    return [
        (size[axis] + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        for axis in range(2)
    ]
