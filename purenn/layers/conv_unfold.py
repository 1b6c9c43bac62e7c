"""Convolution of images by hand: gather every window into a column, then multiply matrices.

This is what a convolution *is*: a linear map of each window. It agrees with `conv2d` in exact arithmetic (to about 1e-6
in float32, since sums run in another order) and needs ``kernel_height * kernel_width`` times the input's memory.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn.layers._spatial import check_spatial, per_dimension
from purenn.layers.conv import Conv2d, pad_input
from purenn.tree import applies, container


@container
class UnfoldConv2d(Conv2d):
    """Convolution over images by unfold and matrix product; fields and `init` are those of `Conv2d`."""


@applies(UnfoldConv2d)
def unfold_conv2d(
    p: UnfoldConv2d, x: Float[Tensor, "*batch in_channels height width"]
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Convolve `x`, ``[batch, in_channels, height, width]`` or ``[in_channels, height, width]``, window by window.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    check_spatial("unfold_conv", x, 2, channels=p.weight.size(1) * p.groups)
    x, padding = pad_input(p, x, 2)
    padding, stride, dilation = (
        per_dimension(name, value, 2)
        for name, value in (("padding", padding), ("stride", p.stride), ("dilation", p.dilation))
    )
    kernel_size = p.weight.shape[2:]
    out_size = [
        (x.size(axis - 2) + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        for axis in range(2)
    ]
    # One column for each window: [batch, in_channels * kernel elements, windows].
    columns = F.unfold(x, tuple(kernel_size), dilation, padding, stride)
    columns = columns.unflatten(-2, (p.groups, -1))
    weight = p.weight.flatten(1).unflatten(0, (p.groups, -1))
    y = (weight @ columns).flatten(-3, -2)
    if p.bias is not None:
        y = y + p.bias.unsqueeze(-1)
    return y.unflatten(-1, out_size)
