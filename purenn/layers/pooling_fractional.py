"""Fractional max pooling: maxima of windows at random places, so that sizes may shrink by a factor like 1.4.

Graham 2014, Fractional max-pooling, arXiv:1412.6071. Along each dimension of each channel one number u from [0, 1)
fixes where the windows start: window i at ``floor(a * (i + u)) - floor(a * u)``, the last one at the end of the input.
torch's kernel has no batching rule; here the windows are gathered, the maximum chosen, and the chosen elements gathered
again, so that all derivatives pass through that last step alone.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers._spatial import Sizes, check_spatial, per_dimension
from purenn.tree import Layer, applies, buffer, container, static


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
    flat = x.flatten(-dimensions)
    places = _window_places(x.shape[-dimensions:], output_size, kernel_size, samples)
    chosen = flat.detach().gather(-1, places.flatten(-2)).unflatten(-1, places.shape[-2:]).argmax(-1, keepdim=True)
    indices = places.gather(-1, chosen).squeeze(-1)
    y = flat.gather(-1, indices).unflatten(-1, output_size)
    return (y, indices.unflatten(-1, output_size)) if p.return_indices else y


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


def _samples(p: _FractionalMaxPool, x: Tensor, dimensions: int, key: Tensor | None) -> list[Tensor]:
    shape = (*x.shape[:-dimensions], dimensions)
    # Places computed in half precision would be wrong.
    dtype = torch.promote_types(x.dtype, torch.float32)
    if p._random_samples is not None:
        if p._random_samples.shape not in (shape, (1, *shape)):
            raise ShapeError(
                f"fractional_max_pool{dimensions}d: random_samples must have shape {list(shape)} for x of shape "
                f"{list(x.shape)}, got {list(p._random_samples.shape)}."
            )
        samples = p._random_samples.to(dtype).reshape(shape)
    elif key is not None:
        samples = random.uniform(key, shape, dtype=dtype)
    else:
        samples = x.new_full(shape, 0.5, dtype=dtype)
    by_dimension = list(samples.unbind(-1))
    return by_dimension[::-1] if dimensions == 2 else by_dimension


def _window_places(
    sizes: torch.Size, output_size: tuple[int, ...], kernel_size: tuple[int, ...], samples: list[Tensor]
) -> Tensor:
    # Where the elements of every window lie in the flat input: [*batch, channels, windows, elements of a window].
    dimensions = len(kernel_size)
    places: Any = 0
    for axis, (size, out, width, u) in enumerate(zip(sizes, output_size, kernel_size, samples, strict=True)):
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
