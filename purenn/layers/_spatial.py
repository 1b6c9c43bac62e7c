"""What convolutions and poolings share: options for each spatial dimension, and the check of the input's shape."""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from purenn.errors import ArgumentError, ShapeError

Number = TypeVar("Number", bound=float)
Sizes = int | tuple[int, ...]
_NAMES = {1: "length", 2: "height, width", 3: "depth, height, width"}


def per_dimension(name: str, value: Number | Sequence[Number], dimensions: int) -> tuple[Number, ...]:
    """An option as one number for each spatial dimension; a single number stands for all of them.

    Raises:
        ArgumentError: there is another number of them.
    """
    if isinstance(value, (int, float)):
        return (value,) * dimensions
    if len(value) != dimensions:
        raise ArgumentError(
            f"{name} must be one number, or {dimensions} (one for each spatial dimension), got {tuple(value)}."
        )
    return tuple(value)


def check_spatial(family: str, x: Tensor, dimensions: int, *, channels: int | None = None) -> None:
    """Require ``[batch, channels, *spatial]`` or ``[channels, *spatial]``.

    Args:
        family: the layer function's name without its ``1d``, ``2d`` or ``3d``.
        x: the input.
        dimensions: how many spatial dimensions it must have.
        channels: how many channels it must have; None for any number.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    if x.ndim - dimensions not in (1, 2) or (channels is not None and x.size(-1 - dimensions) != channels):
        raise _misfit(f"{family}{dimensions}d", x, dimensions, channels)


def check_images(name: str, x: Tensor, *, channels: int | None = None) -> None:
    """Require ``[batch, channels, height, width]`` or ``[channels, height, width]``.

    Args:
        name: the layer function's name.
        x: the input.
        channels: how many channels it must have; None for any number.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    if x.ndim not in (3, 4) or (channels is not None and x.size(-3) != channels):
        raise _misfit(name, x, 2, channels)


def _misfit(name: str, x: Tensor, dimensions: int, channels: int | None) -> ShapeError:
    rest = f"{'channels' if channels is None else channels}, {_NAMES[dimensions]}"
    hint = "" if channels is None else f" If its channels come last, move them: x.movedim(-1, {-1 - dimensions})."
    return ShapeError(f"{name}: x must be [batch, {rest}] or [{rest}], got shape {list(x.shape)}.{hint}")


def check_output_size(
    family: str, x: Tensor, output_size: Sequence[int], smallest: tuple[int, ...], largest: tuple[int, ...]
) -> tuple[int, ...]:
    """The spatial part of a size that was asked for, which may come with or without batch and channels, as in torch.

    Args:
        family: the layer function's name without its ``1d``, ``2d`` or ``3d``.
        x: the input.
        output_size: size of the result's spatial dimensions, or of all of them.
        smallest: least size that each spatial dimension can have.
        largest: greatest size that it can have.

    Raises:
        ShapeError: it cannot be reached.
    """
    dimensions = len(smallest)
    spatial = tuple(output_size[-dimensions:] if len(output_size) == x.ndim else output_size)
    if len(spatial) != dimensions or any(
        not low <= size <= high for low, size, high in zip(smallest, spatial, largest, strict=True)
    ):
        raise ShapeError(
            f"{family}{dimensions}d: output_size must lie between {smallest} and {largest} for x of shape "
            f"{list(x.shape)}, got {tuple(output_size)}."
        )
    return spatial
