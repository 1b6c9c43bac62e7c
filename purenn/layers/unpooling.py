"""Unpooling: put maxima back to the places where max pooling found them, with zeros everywhere else."""

import math
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from purenn.errors import ShapeError
from purenn.layers._spatial import Sizes, check_output_size, check_spatial, per_dimension
from purenn.tree import Layer, applies, container, static


@container
class _MaxUnpool(Layer):
    kernel_size: Sizes = static()
    stride: Sizes | None = static(default=None)
    padding: Sizes = static(default=0)


@container
class MaxUnpool1d(_MaxUnpool):
    """The partial inverse of `MaxPool1d`; give it the options of the pooling.

    Attributes:
        kernel_size: size of the pooling's window.
        stride: how far it moved in each step; `kernel_size` if None.
        padding: how much was added on both sides.
    """


@applies(MaxUnpool1d)
def max_unpool1d(
    p: MaxUnpool1d,
    x: Float[Tensor, "*batch channels length"],
    indices: Int[Tensor, "*batch channels length"],
    *,
    output_size: Sequence[int] | None = None,
) -> Float[Tensor, "*batch channels out_length"]:
    """Put each element of `x` at its index.

    Args:
        p: the container.
        x: the maxima.
        indices: their places in the result, counted over its spatial dimensions, as the pooling returns them. Where one
            comes twice, either of its elements may be taken.
        output_size: size of the result's spatial dimensions (or of all of them), where pooling maps several sizes to
            one. By default ``(length - 1) * stride - 2 * padding + kernel_size``.

    Raises:
        ShapeError: `x` has another number of dimensions, `indices` another shape, or `output_size` cannot be reached.
    """
    return _max_unpool(p, x, indices, 1, output_size)


@container
class MaxUnpool2d(_MaxUnpool):
    """The partial inverse of `MaxPool2d`; the fields are those of `MaxUnpool1d`."""


@applies(MaxUnpool2d)
def max_unpool2d(
    p: MaxUnpool2d,
    x: Float[Tensor, "*batch channels height width"],
    indices: Int[Tensor, "*batch channels height width"],
    *,
    output_size: Sequence[int] | None = None,
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Put each element of `x` at its index; arguments, sizes and errors are those of `max_unpool1d`."""
    return _max_unpool(p, x, indices, 2, output_size)


@container
class MaxUnpool3d(_MaxUnpool):
    """The partial inverse of `MaxPool3d`; the fields are those of `MaxUnpool1d`."""


@applies(MaxUnpool3d)
def max_unpool3d(
    p: MaxUnpool3d,
    x: Float[Tensor, "*batch channels depth height width"],
    indices: Int[Tensor, "*batch channels depth height width"],
    *,
    output_size: Sequence[int] | None = None,
) -> Float[Tensor, "*batch channels out_depth out_height out_width"]:
    """Put each element of `x` at its index; arguments, sizes and errors are those of `max_unpool1d`."""
    return _max_unpool(p, x, indices, 3, output_size)


def _max_unpool(
    p: _MaxUnpool, x: Tensor, indices: Tensor, dimensions: int, output_size: Sequence[int] | None
) -> Tensor:
    check_spatial("max_unpool", x, dimensions)
    if indices.shape != x.shape:
        raise ShapeError(
            f"max_unpool{dimensions}d: indices must have the shape of x, {list(x.shape)}, got {list(indices.shape)}."
        )
    spatial = _unpooled_size(p, x, dimensions, output_size)
    # torch's own kernel has no batching rule.
    flat = x.new_zeros(*x.shape[:-dimensions], math.prod(spatial))
    y = flat.scatter(-1, indices.flatten(-dimensions), x.flatten(-dimensions))
    return y.unflatten(-1, spatial)


def _unpooled_size(p: _MaxUnpool, x: Tensor, dimensions: int, output_size: Sequence[int] | None) -> tuple[int, ...]:
    kernel_size, padding = (per_dimension(name, getattr(p, name), dimensions) for name in ("kernel_size", "padding"))
    stride = kernel_size if p.stride is None else per_dimension("stride", p.stride, dimensions)
    default = tuple(
        (length - 1) * step - 2 * added + width
        for length, step, added, width in zip(x.shape[-dimensions:], stride, padding, kernel_size, strict=True)
    )
    if output_size is None:
        return default
    smallest = tuple(usual - step + 1 for usual, step in zip(default, stride, strict=True))
    largest = tuple(usual + step - 1 for usual, step in zip(default, stride, strict=True))
    return check_output_size("max_unpool", x, output_size, smallest, largest)
