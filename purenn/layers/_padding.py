"""What the padding layers share: the form of their sizes, torch's operation, and what is said where it cannot pad."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from purenn.errors import ArgumentError, ShapeError
from purenn.layers._spatial import Sizes, check_spatial
from purenn.tree import Layer, container, static

# For each mode: how much can be added to a dimension of size n, and in words. More than n can never be cut off.
_LIMITS: dict[str, tuple[Callable[[int], float], str]] = {
    "constant": (lambda n: math.inf, "no more can be cut off than there is"),
    "reflect": (lambda n: n - 1, "each must be smaller than the dimension that it extends"),
    "replicate": (lambda n: math.inf if n else 0, "an empty dimension has no element to repeat"),
    "circular": (lambda n: n, "each must be at most the size of the dimension that it extends"),
}


class _AllSides:
    # A converter that sees the container; attrs has a class for them since version 24.
    takes_self = True

    def __call__(self, padding: Any, p: Any, field: Any) -> tuple[int, ...]:
        if isinstance(padding, int):
            return (padding,) * (2 * p.dimensions)
        sides = tuple(padding)
        if len(sides) != 2 * p.dimensions or not all(isinstance(side, int) for side in sides):
            raise ArgumentError(
                f"{type(p).__name__}: padding must be one whole number, or {2 * p.dimensions} (two for each "
                f"dimension, the last dimension first), got {padding}."
            )
        return sides


_all_sides: Any = _AllSides()


@container
class Padding(Layer):
    """Sizes of a padding, two for each dimension, the last dimension first; one number stands for all."""

    dimensions: ClassVar[int]

    padding: Sizes = static(converter=_all_sides)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.padding}"


def pad(name: str, p: Any, x: Tensor, mode: str, value: float | None = None) -> Tensor:
    """Pad the last dimensions of `x` by ``p.padding``.

    Args:
        name: the layer function's name without its ``1d``, ``2d`` or ``3d``.
        p: the container, or the module in its place.
        x: the input.
        mode: torch's name of what is added.
        value: the number that is added in mode ``"constant"``.

    Raises:
        ShapeError: `x` has another number of dimensions, or a size that does not go with the padding.
    """
    try:
        return F.pad(x, p.padding, mode, value)
    except (RuntimeError, ValueError, IndexError) as error:
        # Looked into only after the fact: what torch can pad costs nothing more.
        _explain(name, p.padding, x, mode, error)
        raise


def _explain(name: str, padding: tuple[int, ...], x: Tensor, mode: str, error: Exception) -> None:
    dimensions = len(padding) // 2
    if mode != "constant":
        check_spatial(name, x, dimensions)
    elif x.ndim < dimensions:
        raise ShapeError(
            f"{name}{dimensions}d: x must have at least {dimensions} dimensions, got shape {list(x.shape)}."
        ) from error
    limit, rule = _LIMITS[mode]
    for before, after, n in zip(padding[::2], padding[1::2], reversed(x.shape), strict=False):
        if max(before, after, 0) > limit(n) or n + before + after < 0:
            if n + before + after < 0:
                rule = _LIMITS["constant"][1]
            raise ShapeError(
                f"{name}{dimensions}d: {(before, after)} does not fit a dimension of size {n} in x of shape "
                f"{list(x.shape)}: {rule}."
            ) from error
