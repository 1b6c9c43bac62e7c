"""Maximum, average and power-average pooling: one number for each window that slides over the input.

Inputs are ``[batch, channels, *spatial]`` or ``[channels, *spatial]`` with one, two or three spatial dimensions. Sizes
are one number or one for each spatial dimension. All options are those of `torch.nn`, in the same order, so that
``MaxPool2d(2)`` and ``MaxPool2d(3, 2, 1)`` mean what they mean there.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn.layers._spatial import Sizes, check_spatial
from purenn.ops._max_pool import is_large, max_pool
from purenn.tree import Layer, applies, container, static


@container
class _MaxPool(Layer):
    kernel_size: Sizes = static()
    stride: Sizes | None = static(default=None)
    padding: Sizes = static(default=0)
    dilation: Sizes = static(default=1)
    return_indices: bool = static(default=False)
    ceil_mode: bool = static(default=False)


@container
class MaxPool1d(_MaxPool):
    """The largest element of each window.

    Attributes:
        kernel_size: size of the window.
        stride: how far it moves in each step; `kernel_size` if None.
        padding: how much of minus infinity is added on both sides, at most half of `kernel_size`.
        dilation: distance between the window's elements.
        return_indices: whether to return also where the largest elements are, for `MaxUnpool1d`.
        ceil_mode: whether a last window may reach beyond the input.
    """


@applies(MaxPool1d)
def max_pool1d(
    p: MaxPool1d, x: Float[Tensor, "*batch channels length"]
) -> Float[Tensor, "*batch channels out_length"] | tuple[Tensor, Tensor]:
    """Pool over the last dimension.

    Returns:
        The maxima, with ``out_length = floor((length + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1)``;
        with ``p.return_indices`` the pair of maxima and their places in the input, counted over its spatial dimensions.

    Raises:
        ShapeError: `x` has another number of dimensions.
    """
    return _max_pool(F.max_pool1d, p, x, 1)


@container
class MaxPool2d(_MaxPool):
    """The largest element of each window of an image; the fields are those of `MaxPool1d`."""


@applies(MaxPool2d)
def max_pool2d(
    p: MaxPool2d, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels out_height out_width"] | tuple[Tensor, Tensor]:
    """Pool over the last two dimensions; results and errors are those of `max_pool1d`."""
    return _max_pool(F.max_pool2d, p, x, 2)


@container
class MaxPool3d(_MaxPool):
    """The largest element of each window of a volume; the fields are those of `MaxPool1d`."""


@applies(MaxPool3d)
def max_pool3d(
    p: MaxPool3d, x: Float[Tensor, "*batch channels depth height width"]
) -> Float[Tensor, "*batch channels out_depth out_height out_width"] | tuple[Tensor, Tensor]:
    """Pool over the last three dimensions; results and errors are those of `max_pool1d`."""
    return _max_pool(F.max_pool3d, p, x, 3)


def _max_pool(function: Callable[..., Any], p: _MaxPool, x: Tensor, dimensions: int) -> Any:
    check_spatial("max_pool", x, dimensions)
    options = p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode
    if is_large(x, dimensions, p.dilation):
        y, places = max_pool(function, x, *options)
        return (y, places) if p.return_indices else y
    return function(x, *options, return_indices=p.return_indices)


@container
class AvgPool1d(Layer):
    """The mean of each window.

    Attributes:
        kernel_size: size of the window.
        stride: how far it moves in each step; `kernel_size` if None.
        padding: how many zeros are added on both sides, at most half of `kernel_size`.
        ceil_mode: whether a last window may reach beyond the input.
        count_include_pad: whether the added zeros count as elements of the mean.
    """

    kernel_size: Sizes = static()
    stride: Sizes | None = static(default=None)
    padding: Sizes = static(default=0)
    ceil_mode: bool = static(default=False)
    count_include_pad: bool = static(default=True)


@applies(AvgPool1d)
def avg_pool1d(p: AvgPool1d, x: Float[Tensor, "*batch channels length"]) -> Float[Tensor, "*batch channels out_length"]:
    """Pool over the last dimension, with ``out_length = floor((length + 2 * padding - kernel_size) / stride + 1)``.

    Raises:
        ShapeError: `x` has another number of dimensions.
    """
    return _avg_pool(F.avg_pool1d, p, x, 1)


@container
class AvgPool2d(AvgPool1d):
    """The mean of each window of an image.

    Attributes:
        kernel_size, stride, padding, ceil_mode, count_include_pad: as in `AvgPool1d`.
        divisor_override: what the sum of a window is divided by, instead of the number of its elements.
    """

    divisor_override: int | None = static(default=None)


@applies(AvgPool2d)
def avg_pool2d(
    p: AvgPool2d, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Pool over the last two dimensions; sizes and errors are those of `avg_pool1d`."""
    return _avg_pool(F.avg_pool2d, p, x, 2, p.divisor_override)


@container
class AvgPool3d(AvgPool2d):
    """The mean of each window of a volume; the fields are those of `AvgPool2d`."""


@applies(AvgPool3d)
def avg_pool3d(
    p: AvgPool3d, x: Float[Tensor, "*batch channels depth height width"]
) -> Float[Tensor, "*batch channels out_depth out_height out_width"]:
    """Pool over the last three dimensions; sizes and errors are those of `avg_pool1d`."""
    return _avg_pool(F.avg_pool3d, p, x, 3, p.divisor_override)


def _avg_pool(function: Callable[..., Tensor], p: AvgPool1d, x: Tensor, dimensions: int, *divisor: Any) -> Tensor:
    check_spatial("avg_pool", x, dimensions)
    stride = p.kernel_size if p.stride is None else p.stride
    wide = _with_kernel(x, dimensions)
    return function(wide, p.kernel_size, stride, p.padding, p.ceil_mode, p.count_include_pad, *divisor).to(x.dtype)


def _with_kernel(x: Tensor, dimensions: int) -> Tensor:
    # On the CPU torch has no averages of volumes in half precision.
    half = dimensions == 3 and x.dtype in (torch.float16, torch.bfloat16) and x.device.type == "cpu"
    return x.float() if half else x


@container
class _LPPool(Layer):
    norm_type: float = static()
    kernel_size: Sizes = static()
    stride: Sizes | None = static(default=None)
    ceil_mode: bool = static(default=False)


@container
class LPPool1d(_LPPool):
    """The power average of each window, ``sum(x ** norm_type) ** (1 / norm_type)``: the sum at 1, the norm at 2.

    Attributes:
        norm_type: the power.
        kernel_size: size of the window.
        stride: how far it moves in each step; `kernel_size` if None.
        ceil_mode: whether a last window may reach beyond the input.
    """


@applies(LPPool1d)
def lp_pool1d(p: LPPool1d, x: Float[Tensor, "*batch channels length"]) -> Float[Tensor, "*batch channels out_length"]:
    """Pool over the last dimension, with ``out_length = floor((length - kernel_size) / stride + 1)``.

    Raises:
        ShapeError: `x` has another number of dimensions.
    """
    return _lp_pool(F.lp_pool1d, p, x, 1)


@container
class LPPool2d(_LPPool):
    """The power average of each window of an image; the fields are those of `LPPool1d`."""


@applies(LPPool2d)
def lp_pool2d(
    p: LPPool2d, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Pool over the last two dimensions; sizes and errors are those of `lp_pool1d`."""
    return _lp_pool(F.lp_pool2d, p, x, 2)


@container
class LPPool3d(_LPPool):
    """The power average of each window of a volume; the fields are those of `LPPool1d`."""


@applies(LPPool3d)
def lp_pool3d(
    p: LPPool3d, x: Float[Tensor, "*batch channels depth height width"]
) -> Float[Tensor, "*batch channels out_depth out_height out_width"]:
    """Pool over the last three dimensions; sizes and errors are those of `lp_pool1d`."""
    return _lp_pool(F.lp_pool3d, p, x, 3)


def _lp_pool(function: Callable[..., Tensor], p: _LPPool, x: Tensor, dimensions: int) -> Tensor:
    check_spatial("lp_pool", x, dimensions)
    wide = _with_kernel(x, dimensions)
    return function(wide, float(p.norm_type), p.kernel_size, p.stride, p.ceil_mode).to(x.dtype)
