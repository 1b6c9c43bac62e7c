"""Fractional max pooling: maxima of windows at random places, so that sizes may shrink by a factor like 1.4.

Graham 2014, Fractional max-pooling, arXiv:1412.6071. Along each dimension of each channel one number u from [0, 1)
fixes where the windows start: window i at ``floor(a * (i + u)) - floor(a * u)``, the last one at the end of the input.
Where the largest elements are is found first, by torch's kernel where it has all that is asked for, elsewhere in plain
operations; then they are gathered, so that all derivatives pass through that last step alone.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn._kernels import Kernel, differentiable_twice, may_use_kernels
from purenn.errors import ArgumentError, ShapeError
from purenn.layers._spatial import Sizes, check_spatial, per_dimension
from purenn.tree import Layer, applies, buffer, container, static

_aten = torch.ops.aten
_KERNELS = {
    2: (_aten.fractional_max_pool2d.default, _aten.fractional_max_pool2d_backward.default),
    3: (_aten.fractional_max_pool3d.default, _aten.fractional_max_pool3d_backward.default),
}


@container
class _FractionalMaxPool(Layer):
    kernel_size: Sizes = static()
    output_size: Sizes | None = static(default=None)
    output_ratio: float | tuple[float, ...] | None = static(default=None)
    return_indices: bool = static(default=False)
    _random_samples: Float[Tensor, "*batch channels dimensions"] | None = buffer(default=None)


@container
class FractionalMaxPool2d(_FractionalMaxPool):
    """The largest elements of windows at random places of an image.

    Attributes:
        kernel_size: size of the windows, one number or one for each dimension, as the next two.
        output_size: size of the result; exactly one of it and `output_ratio` is given.
        output_ratio: size of the result as a part of the input's, between 0 and 1.
        return_indices: whether to return also where the largest elements are, for `MaxUnpool2d`.
        _random_samples: the numbers u, for windows that are the same in every call (``random_samples`` in the
            constructor): ``[batch, channels, 2]``, that of the width before that of the height, as in torch.
    """


@applies(FractionalMaxPool2d)
def fractional_max_pool2d(
    p: FractionalMaxPool2d, x: Float[Tensor, "*batch channels height width"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch channels out_height out_width"] | tuple[Tensor, Tensor]:
    """Pool over the last two dimensions.

    Args:
        p: the container.
        x: ``[batch, channels, height, width]`` or ``[channels, height, width]``.
        key: draws the numbers u, unless the container has them; without a key they are all 0.5.

    Returns:
        The maxima; with ``p.return_indices`` the pair of maxima and their places in the input, counted over its spatial
        dimensions.

    Raises:
        ShapeError: `x` has another number of dimensions, or the windows do not fit into it.
        ArgumentError: not exactly one of `output_size` and `output_ratio` is given, or the ratio is out of range.
    """
    return _fractional_max_pool(p, x, 2, key)


@container
class FractionalMaxPool3d(_FractionalMaxPool):
    """The largest elements of windows at random places of a volume.

    The fields are those of `FractionalMaxPool2d`; `_random_samples` is ``[batch, channels, 3]``, in the order depth,
    height, width.
    """


@applies(FractionalMaxPool3d)
def fractional_max_pool3d(
    p: FractionalMaxPool3d, x: Float[Tensor, "*batch channels depth height width"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch channels out_depth out_height out_width"] | tuple[Tensor, Tensor]:
    """Pool over the last three dimensions; arguments, results and errors are those of `fractional_max_pool2d`."""
    return _fractional_max_pool(p, x, 3, key)


def _fractional_max_pool(p: _FractionalMaxPool, x: Tensor, dimensions: int, key: Tensor | None) -> Any:
    check_spatial("fractional_max_pool", x, dimensions)
    kernel_size = per_dimension("kernel_size", p.kernel_size, dimensions)
    output_size = _output_size(p, x, kernel_size)
    samples = _samples(p, x, dimensions, key)
    # In half precision the kernel computes the places too, and they would be wrong.
    if samples.dtype == x.dtype and x.numel() and not x.is_meta and may_use_kernels(x, samples):
        y, indices = _by_kernel(x, kernel_size, output_size, samples)
    else:
        indices = _indices(x.detach(), kernel_size, output_size, samples)
        y = _at(x, indices, dimensions)
    return (y, indices) if p.return_indices else y


def _at(x: Tensor, indices: Tensor, dimensions: int) -> Tensor:
    return x.flatten(-dimensions).gather(-1, indices.flatten(-dimensions)).reshape(indices.shape)


def _by_kernel(
    x: Tensor, kernel_size: tuple[int, ...], output_size: tuple[int, ...], samples: Tensor
) -> tuple[Tensor, Tensor]:
    dimensions = len(kernel_size)
    pool, derivative = _KERNELS[dimensions]
    if x.dim() == dimensions + 1:
        y, indices = _by_kernel(x[None], kernel_size, output_size, samples[None])
        return y[0], indices[0]
    y, indices = pool(x.detach(), kernel_size, output_size, samples)
    kernel = Kernel(
        lambda _: (y,), lambda gradient, x: derivative(gradient.contiguous(), x, kernel_size, output_size, indices)
    )
    return differentiable_twice(kernel, lambda x: _at(x, indices, dimensions), x), indices


def _indices(x: Tensor, kernel_size: tuple[int, ...], output_size: tuple[int, ...], samples: Tensor) -> Tensor:
    # Where the largest element of each window lies.
    dimensions = len(kernel_size)
    places = _window_places(x.shape[-dimensions:], output_size, kernel_size, samples)
    windows = x.flatten(-dimensions).gather(-1, places.flatten(-2)).unflatten(-1, places.shape[-2:])
    return places.gather(-1, windows.argmax(-1, keepdim=True)).squeeze(-1).unflatten(-1, output_size)


def _output_size(p: _FractionalMaxPool, x: Tensor, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    dimensions = len(kernel_size)
    name, sizes = f"fractional_max_pool{dimensions}d", tuple(x.shape[-dimensions:])
    if p.output_size is not None and p.output_ratio is None:
        output_size = per_dimension("output_size", p.output_size, dimensions)
    elif p.output_ratio is not None and p.output_size is None:
        ratios = per_dimension("output_ratio", p.output_ratio, dimensions)
        if not all(0 < ratio < 1 for ratio in ratios):
            raise ArgumentError(f"{name}: output_ratio must be between 0 and 1, got {p.output_ratio}.")
        output_size = tuple(int(size * ratio) for size, ratio in zip(sizes, ratios, strict=True))
    else:
        raise ArgumentError(
            f"{name}: exactly one of output_size and output_ratio must be given, got output_size={p.output_size} and "
            f"output_ratio={p.output_ratio}."
        )
    if any(size < out + width - 1 for size, out, width in zip(sizes, output_size, kernel_size, strict=True)):
        raise ShapeError(
            f"{name}: windows of size {kernel_size} do not fit {output_size} times into an input of size {sizes}: in "
            f"each dimension it must be at least the output's size plus the window's, minus 1."
        )
    return output_size


def _samples(p: _FractionalMaxPool, x: Tensor, dimensions: int, key: Tensor | None) -> Tensor:
    shape = (*x.shape[:-dimensions], dimensions)
    # Places computed in half precision would be wrong.
    dtype = torch.promote_types(x.dtype, torch.float32)
    if p._random_samples is not None:
        if p._random_samples.shape not in (shape, (1, *shape)):
            raise ShapeError(
                f"fractional_max_pool{dimensions}d: random_samples must have shape {list(shape)} for x of shape "
                f"{list(x.shape)}, got {list(p._random_samples.shape)}."
            )
        return p._random_samples.to(dtype).reshape(shape)
    if key is not None:
        return random.uniform(key, shape, dtype=dtype)
    return x.new_full(shape, 0.5, dtype=dtype)


def _window_places(
    sizes: torch.Size, output_size: tuple[int, ...], kernel_size: tuple[int, ...], samples: Tensor
) -> Tensor:
    # Where the elements of every window lie in the flat input: [*batch, channels, windows, elements of a window].
    dimensions = len(kernel_size)
    # In two dimensions torch has the number of the width first.
    numbers = samples.flip(-1).unbind(-1) if dimensions == 2 else samples.unbind(-1)
    places: Any = 0
    for axis, (size, out, width, u) in enumerate(zip(sizes, output_size, kernel_size, numbers, strict=True)):
        step = (size - width) / max(out - 1, 1)
        window = torch.arange(out, device=u.device)
        u = u.unsqueeze(-1)
        start = ((window + u) * step).long() - (u * step).long()
        start = torch.where(window == out - 1, size - width, start)
        along = start.unsqueeze(-1) + torch.arange(width, device=u.device)
        ones = [1] * (dimensions - 1)
        along = along.unflatten(-2, (*ones[:axis], out, *ones[axis:])).unflatten(
            -1, (*ones[:axis], width, *ones[axis:])
        )
        places = places * size + along
    return places.flatten(-dimensions).flatten(-1 - dimensions, -2)
