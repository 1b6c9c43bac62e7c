"""Derivatives, in formulas, of the functions that are computed of many tasks at once.

Each rule is what one call leaves behind: ``y = f(x, ...)``, where all tensors have a leading axis for the tasks. None
stands for zero.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level

Some = Tensor | None


class Rule(Protocol):
    """The derivatives of one call.

    Gradients are added to what is given as `before`, an entry for each input. Entries of inputs that do not require
    grad are not looked at. Where `y` is one number for each task, `g` may be the same number for all.

    Attributes:
        bends: whether gradients change with the inputs, so that `turn` looks at `g`.
    """

    @property
    def bends(self) -> bool: ...

    def __iter__(self) -> Iterator[Any]: ...

    def pull(self, g: Any, before: Sequence[Some]) -> Sequence[Some]:
        """`before` plus the gradients by the inputs, from the gradient `g` by the output."""
        ...

    def push(self, tangents: Sequence[Some]) -> Some:
        """The tangent of the output, from those of the inputs."""
        ...

    def turn(self, g: Any, change: Some, tangents: Sequence[Some], before: Sequence[Some]) -> Sequence[Some]:
        """`before` plus the changes of the gradients, from the change of `g` and those of the inputs."""
        ...


class Linear(NamedTuple):
    """Of ``rows @ matrices.mT``, plus biases if there are any."""

    rows: Tensor
    matrices: Tensor
    has_biases: bool
    bends = True

    def pull(self, g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        rows, matrices, has_biases = self
        by_rows = plus_product(before[0], g, matrices) if rows.requires_grad else None
        by_matrices = plus_product(before[1], g.mT, rows) if matrices.requires_grad else None
        return (by_rows, by_matrices, added(before[2], g.sum(1))) if has_biases else (by_rows, by_matrices)

    def push(self, tangents: Sequence[Some]) -> Some:
        rows, matrices, has_biases = self
        found = None
        if tangents[1] is not None:
            found = product(rows, tangents[1].mT)
        if tangents[0] is not None:
            found = plus_product(found, tangents[0], matrices.mT)
        if has_biases and tangents[2] is not None:
            biases = tangents[2].unsqueeze(1)
            found = biases.expand(-1, rows.shape[1], -1) if found is None else found + biases
        return found

    def turn(self, g: Tensor, change: Some, tangents: Sequence[Some], before: Sequence[Some]) -> Sequence[Some]:
        rows, matrices, _ = self
        fresh = change is not None
        by_rows, by_matrices, *by_biases = self.pull(change, before) if fresh else before
        if tangents[1] is not None and rows.requires_grad:
            by_rows = plus_product(by_rows, g, tangents[1], fresh=fresh)
        if tangents[0] is not None and matrices.requires_grad:
            by_matrices = plus_product(by_matrices, g.mT, tangents[0], fresh=fresh)
        return by_rows, by_matrices, *by_biases


class Difference(NamedTuple):
    """Of ``x - y``."""

    by_y: bool
    bends = False

    def pull(self, g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        return added(before[0], g), added(before[1], -g) if self.by_y else None

    def push(self, tangents: Sequence[Some]) -> Some:
        return _difference(tangents)

    def turn(self, g: Tensor, change: Some, tangents: Sequence[Some], before: Sequence[Some]) -> Sequence[Some]:
        return before if change is None else self.pull(change, before)


class SquaredErrors(NamedTuple):
    """Of the mean of ``(x - y)**2``."""

    errors: Tensor
    by_y: bool
    bends = True

    def pull(self, g: Tensor | float, before: Sequence[Some]) -> Sequence[Some]:
        return Difference(self.by_y).pull(self._scaled(self.errors, g), before)

    def push(self, tangents: Sequence[Some]) -> Some:
        change = _difference(tangents)
        return None if change is None else 2 * mean_of_each(self.errors * change)

    def turn(self, g: Tensor | float, change: Some, tangents: Sequence[Some], before: Sequence[Some]) -> Sequence[Some]:
        of_errors = _difference(tangents)
        if of_errors is not None:
            before = Difference(self.by_y).pull(self._scaled(of_errors, g), before)
        return before if change is None else self.pull(change, before)

    def _scaled(self, x: Tensor, g: Tensor | float) -> Tensor:
        g = g * (2 * share_of(x.shape))
        return x * (g.view(-1, *[1] * (x.dim() - 1)) if isinstance(g, Tensor) else g)


class CrossEntropies(NamedTuple):
    """Of the mean cross-entropy of rows of scores; `shares` is what each row adds to its task's mean."""

    scores: Tensor
    classes: Tensor
    shares: Tensor
    bends = True

    def pull(self, g: Tensor | float, before: Sequence[Some]) -> Sequence[Some]:
        return [added(before[0], self._errors() * self._weights(g))]

    def push(self, tangents: Sequence[Some]) -> Some:
        (of_scores,) = tangents
        return None if of_scores is None else (self._errors() * self._weights(1.0) * of_scores).sum((1, 2))

    def turn(self, g: Tensor | float, change: Some, tangents: Sequence[Some], before: Sequence[Some]) -> Sequence[Some]:
        (of_scores,) = tangents
        if of_scores is not None:
            y = self.scores.softmax(-1)
            turned = _aten._softmax_backward_data.default(of_scores, y, -1, y.dtype)
            before = [added(before[0], turned * self._weights(g))]
        return before if change is None else self.pull(change, before)

    def _errors(self) -> Tensor:
        places = self.classes.clamp(0, self.scores.shape[-1] - 1).unsqueeze(-1)
        return self.scores.softmax(-1) - torch.zeros_like(self.scores).scatter_(-1, places, 1)

    def _weights(self, g: Tensor | float) -> Tensor:
        return (self.shares * (g.unsqueeze(1) if isinstance(g, Tensor) else g)).unsqueeze(-1)


class Mean(NamedTuple):
    """Of the mean of each task's numbers, as many as `shape` says."""

    shape: torch.Size
    bends = False

    def pull(self, g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        each = (g * share_of(self.shape)).view(-1, *[1] * (len(self.shape) - 1))
        return [added(before[0], each.expand(self.shape))]

    def push(self, tangents: Sequence[Some]) -> Some:
        return None if tangents[0] is None else mean_of_each(tangents[0])

    def turn(self, g: Tensor, change: Some, tangents: Sequence[Some], before: Sequence[Some]) -> Sequence[Some]:
        return before if change is None else self.pull(change, before)


class Kind(NamedTuple):
    """A function of each number.

    Attributes:
        function: the function.
        by_result: whether its derivatives are given by its result ``v = y``, otherwise by its input ``v = x``.
        slope: ``slope(g, v)`` is g times the first derivative.
        curve: ``curve(g, v)`` is g times the second derivative; None if that is zero.
    """

    function: Callable[[Tensor], Tensor]
    by_result: bool
    slope: Callable[[Tensor, Tensor], Tensor]
    curve: Callable[[Tensor, Tensor], Tensor] | None = None


class OfNumbers(NamedTuple):
    """Of a `Kind`."""

    kind: Kind
    v: Tensor

    @property
    def bends(self) -> bool:
        """Whether there is a second derivative."""
        return self.kind.curve is not None

    def pull(self, g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        return [added(before[0], self.kind.slope(g, self.v))]

    def push(self, tangents: Sequence[Some]) -> Some:
        return None if tangents[0] is None else self.kind.slope(tangents[0], self.v)

    def turn(self, g: Tensor, change: Some, tangents: Sequence[Some], before: Sequence[Some]) -> Sequence[Some]:
        (of_x,), curve = tangents, self.kind.curve
        if of_x is not None and curve is not None:
            before = [added(before[0], curve(g * of_x, self.v))]
        return before if change is None else self.pull(change, before)


def _curve_of_gelu(g: Tensor, x: Tensor) -> Tensor:
    # The normal density at x, times 2 - x^2.
    square = x * x
    density = (square * -0.5).exp_()
    return g * square.sub_(2).mul_(density).mul_(-1 / math.sqrt(2 * math.pi))


_aten = torch.ops.aten
# Torch's own gradient has one by the result, of zeros.
RELU = Kind(torch.relu, True, lambda g, y: _aten.threshold_backward.default(g, y.detach(), 0))
TANH = Kind(
    torch.tanh,
    True,
    lambda g, y: _aten.tanh_backward.default(g, y),
    lambda g, y: _aten.tanh_backward.default(-2 * g * y, y),
)
SIGMOID = Kind(
    torch.sigmoid,
    True,
    lambda g, y: _aten.sigmoid_backward.default(g, y),
    lambda g, y: _aten.sigmoid_backward.default(g - 2 * g * y, y),
)
GELU = Kind(torch.nn.functional.gelu, False, lambda g, x: _aten.gelu_backward.default(g, x), _curve_of_gelu)
SQUARE = Kind(lambda x: x * x, False, lambda g, x: x * (g + g), lambda g, x: g + g)


def share_of(shape: torch.Size) -> float:
    """What each of a task's numbers adds to its mean."""
    return shape[0] / shape.numel()


def mean_of_each(x: Tensor) -> Tensor:
    """The mean of each task's numbers."""
    return x.mean(tuple(range(1, x.dim())))


def added(x: Some, y: Tensor) -> Tensor:
    """The sum."""
    return y if x is None else x + y


def product(x: Tensor, y: Tensor) -> Tensor:
    """The products of matrices."""
    return x * y if x.shape[2] == 1 else torch.bmm(x, y)


def plus_product(total: Some, x: Tensor, y: Tensor, *, fresh: bool = False) -> Tensor:
    """Some numbers, which may be written into if they are fresh, and products of matrices."""
    if total is None:
        return product(x, y)
    if x.shape[2] == 1:
        return torch.addcmul(total, x, y)
    if maybe_current_level() is not None:  # where one may be batched and the other not
        return torch.baddbmm(total, x, y)
    return total.baddbmm_(x, y) if fresh else torch.bmm(x, y).add_(total)


def _difference(tangents: Sequence[Some]) -> Some:
    of_x, of_y = tangents
    if of_y is None:
        return of_x
    return -of_y if of_x is None else of_x - of_y
