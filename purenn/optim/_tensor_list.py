"""Arithmetic on many tensors at once, by torch's foreach kernels.

The rule of an optimiser is written once, with operators and methods. Given tensors it is plain differentiable maths,
given lists of tensors it runs a few kernels for the whole model.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from purenn.optim._private import kernels


class TensorList:
    """Tensors that are calculated with as if they were one."""

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    def __add__(self, other: "TensorList | float") -> "TensorList":
        return TensorList(kernels._foreach_add(self.tensors, _operand(other)))

    def __sub__(self, other: "TensorList | float") -> "TensorList":
        return TensorList(kernels._foreach_sub(self.tensors, _operand(other)))

    def __mul__(self, other: "TensorList | float") -> "TensorList":
        return TensorList(kernels._foreach_mul(self.tensors, _operand(other)))

    def __truediv__(self, other: "TensorList | float") -> "TensorList":
        return TensorList(kernels._foreach_div(self.tensors, _operand(other)))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rtruediv__(self, other: float) -> "TensorList":
        return TensorList(kernels._foreach_reciprocal(self.tensors)) * other

    def __neg__(self) -> "TensorList":
        return TensorList(kernels._foreach_neg(self.tensors))

    def sqrt(self) -> "TensorList":
        """The square roots."""
        return TensorList(kernels._foreach_sqrt(self.tensors))

    def abs(self) -> "TensorList":
        """The absolute values."""
        return TensorList(kernels._foreach_abs(self.tensors))

    def sign(self) -> "TensorList":
        """The signs: -1, 0 or 1."""
        return TensorList(kernels._foreach_sign(self.tensors))

    def maximum(self, other: "TensorList") -> "TensorList":
        """The larger one of two, element by element."""
        return TensorList(kernels._foreach_maximum(self.tensors, other.tensors))

    def clamp(self, lowest: float, highest: float = math.inf) -> "TensorList":
        """Limited to a range."""
        return TensorList(kernels._foreach_clamp_max(kernels._foreach_clamp_min(self.tensors, lowest), highest))


V = TypeVar("V", Tensor, TensorList)


def _operand(other: TensorList | float) -> Sequence[Tensor] | float:
    return other.tensors if isinstance(other, TensorList) else other


def plus(x: Any, y: Any, factor: Any) -> Any:
    """``x + factor * y`` of tensors or of lists of them, in one operation if the factor is a number."""
    if isinstance(factor, Tensor):
        return x + y * factor
    if isinstance(x, TensorList):
        return TensorList(kernels._foreach_add(x.tensors, y.tensors, alpha=factor))
    return torch.add(x, y, alpha=factor)


def toward(start: V, end: V, share: float) -> V:
    """A share of the way from `start` to `end`."""
    return start + (end - start) * share


def root(x: V) -> V:
    """The square root, with the derivative 0 at 0.

    Where a gradient is exactly zero, so is its running square. The true derivative of the root is infinite there and
    makes NaN of every gradient through the step, although that through the quotient of both is finite.
    """
    if isinstance(x, TensorList):
        return x.sqrt()
    zero = x == 0
    return x.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
