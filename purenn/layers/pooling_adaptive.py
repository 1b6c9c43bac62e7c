"""Adaptive pooling: the result's size is chosen, the windows follow from it.

Along a dimension of size n pooled to m, window i reaches from ``floor(i * n / m)`` to ``ceil((i + 1) * n / m)``, so
that windows may overlap. ``AdaptiveAvgPool2d(1)`` is the mean over each channel of an image. Inputs are
``[batch, channels, *spatial]`` or ``[channels, *spatial]``; `output_size` is one number, or a tuple with one for each
of two or three spatial dimensions, in which None keeps the input's size.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn.layers._spatial import check_spatial
from purenn.tree import Layer, applies, container, static

OutputSize = int | tuple[int | None, ...]


@container
class _AdaptiveMaxPool(Layer):
    output_size: OutputSize = static()
    return_indices: bool = static(default=False)


@container
class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The largest element of each of `output_size` windows.

    Attributes:
        output_size: size of the result.
        return_indices: whether to return also where the largest elements are, for `MaxUnpool1d`.
    """


@applies(AdaptiveMaxPool1d)
def adaptive_max_pool1d(
    p: AdaptiveMaxPool1d, x: Float[Tensor, "*batch channels length"]
) -> Float[Tensor, "*batch channels out_length"] | tuple[Tensor, Tensor]:
    """Pool over the last dimension.

    Returns:
        The maxima; with ``p.return_indices`` the pair of maxima and their places in the input, counted over its spatial
        dimensions.

    Raises:
        ShapeError: `x` has another number of dimensions.
    """
    return _adaptive_max_pool(F.adaptive_max_pool1d, p, x, 1)


@container
class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The largest element of each window of an image; the fields are those of `AdaptiveMaxPool1d`."""


@applies(AdaptiveMaxPool2d)
def adaptive_max_pool2d(
    p: AdaptiveMaxPool2d, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels out_height out_width"] | tuple[Tensor, Tensor]:
    """Pool over the last two dimensions; results and errors are those of `adaptive_max_pool1d`."""
    return _adaptive_max_pool(F.adaptive_max_pool2d, p, x, 2)


@container
class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """The largest element of each window of a volume; the fields are those of `AdaptiveMaxPool1d`."""


@applies(AdaptiveMaxPool3d)
def adaptive_max_pool3d(
    p: AdaptiveMaxPool3d, x: Float[Tensor, "*batch channels depth height width"]
) -> Float[Tensor, "*batch channels out_depth out_height out_width"] | tuple[Tensor, Tensor]:
    """Pool over the last three dimensions; results and errors are those of `adaptive_max_pool1d`."""
    return _adaptive_max_pool(F.adaptive_max_pool3d, p, x, 3)


def _adaptive_max_pool(function: Callable[..., Any], p: _AdaptiveMaxPool, x: Tensor, dimensions: int) -> Any:
    check_spatial("adaptive_max_pool", x, dimensions)
    return function(x, p.output_size, return_indices=p.return_indices)


@container
class _AdaptiveAvgPool(Layer):
    output_size: OutputSize = static()


@container
class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """The mean of each of `output_size` windows.

    Attributes:
        output_size: size of the result.
    """


@applies(AdaptiveAvgPool1d)
def adaptive_avg_pool1d(
    p: AdaptiveAvgPool1d, x: Float[Tensor, "*batch channels length"]
) -> Float[Tensor, "*batch channels out_length"]:
    """Pool over the last dimension.

    Raises:
        ShapeError: `x` has another number of dimensions.
    """
    return _adaptive_avg_pool(F.adaptive_avg_pool1d, p, x, 1)


@container
class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """The mean of each window of an image; the field is that of `AdaptiveAvgPool1d`."""


@applies(AdaptiveAvgPool2d)
def adaptive_avg_pool2d(
    p: AdaptiveAvgPool2d, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Pool over the last two dimensions; errors are those of `adaptive_avg_pool1d`."""
    return _adaptive_avg_pool(F.adaptive_avg_pool2d, p, x, 2)


@container
class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """The mean of each window of a volume; the field is that of `AdaptiveAvgPool1d`."""


@applies(AdaptiveAvgPool3d)
def adaptive_avg_pool3d(
    p: AdaptiveAvgPool3d, x: Float[Tensor, "*batch channels depth height width"]
) -> Float[Tensor, "*batch channels out_depth out_height out_width"]:
    """Pool over the last three dimensions; errors are those of `adaptive_avg_pool1d`."""
    return _adaptive_avg_pool(F.adaptive_avg_pool3d, p, x, 3)


def _adaptive_avg_pool(function: Callable[..., Tensor], p: _AdaptiveAvgPool, x: Tensor, dimensions: int) -> Tensor:
    check_spatial("adaptive_avg_pool", x, dimensions)
    return function(x, p.output_size)
