"""Derivatives, in formulas, of the functions that are computed of many tasks at once.

Each rule is of one kind of call, ``y = f(x, ...)``, where all tensors have a leading axis for the tasks. The formulas
are written down before they are run, so a rule does not see any numbers or shapes. None stands for zero.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn.transforms._written import Number

Some = Tensor | None


class Rule(Protocol):
    """The derivatives of one kind of call.

    Gradients are added to what is given as `before`, an entry for each input. Entries of inputs that do not require
    grad are not looked at.

    Attributes:
        keeps: what a call keeps for them: its tensors, numbers and sizes.
        bends: whether gradients change with the inputs, so that `turn` looks at `g`.
        takes_number: whether `g` may be a number, the same for all tasks, if `y` is one number for each.
    """

    @property
    def keeps(self) -> tuple[type, ...]: ...
    @property
    def bends(self) -> bool: ...
    @property
    def takes_number(self) -> bool: ...

    def compute(self, given: Sequence[Tensor], numbers: Sequence[Any]) -> tuple[Tensor, Sequence[Any]]:
        """The output, and what is kept, of which the numbers and sizes are given."""
        ...

    def pull(self, kept: Sequence[Any], g: Any, before: Sequence[Some]) -> Sequence[Some]:
        """`before` plus the gradients by the inputs, from the gradient `g` by the output."""
        ...

    def push(self, kept: Sequence[Any], tangents: Sequence[Some]) -> Some:
        """The tangent of the output, from those of the inputs."""
        ...

    def turn(
        self, kept: Sequence[Any], g: Any, change: Some, tangents: Sequence[Some], before: Sequence[Some]
    ) -> Sequence[Some]:
        """`before` plus the changes of the gradients, from the change of `g` and those of the inputs."""
        ...


class Linear(NamedTuple):
    """Of ``rows @ matrices.mT``, plus biases if there are any. Keeps rows and matrices."""

    has_biases: bool
    by_rows: bool
    by_matrices: bool
    keeps = Tensor, Tensor
    bends = True
    takes_number = False

    def compute(self, given: Sequence[Tensor], numbers: Sequence[Any]) -> tuple[Tensor, Sequence[Any]]:
        rows, matrices, *biases = given
        turned = matrices.mT
        output = torch.baddbmm(biases[0].unsqueeze(1), rows, turned) if biases else torch.bmm(rows, turned)
        return output, (rows, matrices)

    def pull(self, kept: Sequence[Any], g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        rows, matrices = kept
        by_rows = plus_product(before[0], g, matrices) if self.by_rows else None
        by_matrices = plus_product(before[1], g.mT, rows) if self.by_matrices else None
        return (by_rows, by_matrices, added(before[2], g.sum(1))) if self.has_biases else (by_rows, by_matrices)

    def push(self, kept: Sequence[Any], tangents: Sequence[Some]) -> Some:
        rows, matrices = kept
        biases = tangents[2].unsqueeze(1) if self.has_biases and tangents[2] is not None else None
        factors = [(tangents[0], matrices.mT)] if tangents[0] is not None else []
        if tangents[1] is not None:
            factors.append((rows, tangents[1].mT))
        if not factors:
            return None if biases is None else biases.expand(-1, rows.shape[1], -1)
        found = torch.bmm(*factors[0]) if biases is None else torch.baddbmm(biases, *factors[0])
        return found if len(factors) == 1 else found.baddbmm_(*factors[1])

    def turn(
        self, kept: Sequence[Any], g: Tensor, change: Some, tangents: Sequence[Some], before: Sequence[Some]
    ) -> Sequence[Some]:
        fresh = change is not None
        by_rows, by_matrices, *by_biases = self.pull(kept, change, before) if fresh else before
        if tangents[1] is not None and self.by_rows:
            by_rows = plus_product(by_rows, g, tangents[1], fresh=fresh)
        if tangents[0] is not None and self.by_matrices:
            by_matrices = plus_product(by_matrices, g.mT, tangents[0], fresh=fresh)
        return by_rows, by_matrices, *by_biases


class Difference(NamedTuple):
    """Of ``x - y``."""

    by_y: bool
    keeps = ()
    bends = False
    takes_number = False

    def compute(self, given: Sequence[Tensor], numbers: Sequence[Any]) -> tuple[Tensor, Sequence[Any]]:
        return torch.sub(*given), ()

    def pull(self, kept: Sequence[Any], g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        return added(before[0], g), added(before[1], -g) if self.by_y else None

    def push(self, kept: Sequence[Any], tangents: Sequence[Some]) -> Some:
        of_x, of_y = tangents
        if of_y is None:
            return of_x
        return -of_y if of_x is None else of_x - of_y

    def turn(
        self, kept: Sequence[Any], g: Any, change: Some, tangents: Sequence[Some], before: Sequence[Some]
    ) -> Sequence[Some]:
        return before if change is None else self.pull(kept, change, before)


class SquaredErrors(NamedTuple):
    """Of the mean of ``(x - y)**2``. Keeps the errors, and what each adds to the mean."""

    dim: int
    by_y: bool
    keeps = Tensor, float
    bends = True
    takes_number = True

    def compute(self, given: Sequence[Tensor], numbers: Sequence[Any]) -> tuple[Tensor, Sequence[Any]]:
        errors = torch.sub(*given)
        return mean_of_each(errors * errors, self.dim), (errors, *numbers)

    def pull(self, kept: Sequence[Any], g: Any, before: Sequence[Some]) -> Sequence[Some]:
        errors, share = kept
        return self._difference.pull((), self._scaled(errors, g, share), before)

    def push(self, kept: Sequence[Any], tangents: Sequence[Some]) -> Some:
        change = self._difference.push((), tangents)
        return None if change is None else 2 * mean_of_each(kept[0] * change, self.dim)

    def turn(
        self, kept: Sequence[Any], g: Any, change: Some, tangents: Sequence[Some], before: Sequence[Some]
    ) -> Sequence[Some]:
        of_errors = self._difference.push((), tangents)
        if of_errors is not None:
            before = self._difference.pull((), self._scaled(of_errors, g, kept[1]), before)
        return before if change is None else self.pull(kept, change, before)

    @property
    def _difference(self) -> Difference:
        return Difference(self.by_y)

    def _scaled(self, x: Tensor, g: Any, share: float) -> Tensor:
        return x * _along(self.dim, g * (2 * share), g)


class CrossEntropies(NamedTuple):
    """Of the mean cross-entropy of rows of scores, except those whose class is ignored.

    Keeps scores, classes, and what each row adds to its task's mean.
    """

    ignored: int
    keeps = Tensor, Tensor, Tensor
    bends = True
    takes_number = True

    def compute(self, given: Sequence[Tensor], numbers: Sequence[Any]) -> tuple[Tensor, Sequence[Any]]:
        scores, classes = given
        counted = classes != self.ignored
        count = counted.sum(1, keepdim=True, dtype=scores.dtype)
        rows, each = scores.flatten(0, 1), classes.flatten(0, 1)
        losses = F.cross_entropy(rows, each, ignore_index=self.ignored, reduction="none")
        value = losses.view_as(classes).sum(1) / count.squeeze(1)
        # The mean of no example is NaN, and its gradient zero.
        return value, (scores, classes, counted / count.clamp(min=1))

    def pull(self, kept: Sequence[Any], g: Any, before: Sequence[Some]) -> Sequence[Some]:
        scores, classes, shares = kept
        return added(before[0], self._errors(scores, classes) * self._weights(shares, g)), None

    def push(self, kept: Sequence[Any], tangents: Sequence[Some]) -> Some:
        (scores, classes, shares), (of_scores, _) = kept, tangents
        if of_scores is None:
            return None
        return (self._errors(scores, classes) * shares.unsqueeze(-1) * of_scores).sum((1, 2))

    def turn(
        self, kept: Sequence[Any], g: Any, change: Some, tangents: Sequence[Some], before: Sequence[Some]
    ) -> Sequence[Some]:
        (scores, _, shares), (of_scores, _) = kept, tangents
        if of_scores is not None:
            y = scores.softmax(-1)
            turned = _aten._softmax_backward_data.default(of_scores, y, -1, y.dtype)
            before = added(before[0], turned * self._weights(shares, g)), None
        return before if change is None else self.pull(kept, change, before)

    def _errors(self, scores: Tensor, classes: Tensor) -> Tensor:
        places = classes.clamp(0, scores.shape[-1] - 1).unsqueeze(-1)
        return scores.softmax(-1) - torch.zeros_like(scores).scatter_(-1, places, 1)

    def _weights(self, shares: Tensor, g: Any) -> Tensor:
        return (shares * _along(2, g, g)).unsqueeze(-1)


class Mean(NamedTuple):
    """Of the mean of each task's numbers. Keeps their sizes, and what each adds."""

    dim: int
    keeps = torch.Size, float
    bends = False
    takes_number = False

    def compute(self, given: Sequence[Tensor], numbers: Sequence[Any]) -> tuple[Tensor, Sequence[Any]]:
        return mean_of_each(given[0], self.dim), numbers

    def pull(self, kept: Sequence[Any], g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        shape, share = kept
        return [added(before[0], _along(self.dim, g * share, g).expand(shape))]

    def push(self, kept: Sequence[Any], tangents: Sequence[Some]) -> Some:
        return None if tangents[0] is None else mean_of_each(tangents[0], self.dim)

    def turn(
        self, kept: Sequence[Any], g: Any, change: Some, tangents: Sequence[Some], before: Sequence[Some]
    ) -> Sequence[Some]:
        return before if change is None else self.pull(kept, change, before)


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
    """Of a `Kind`. Keeps its v."""

    kind: Kind
    keeps = (Tensor,)
    takes_number = False

    @property
    def bends(self) -> bool:
        """Whether there is a second derivative."""
        return self.kind.curve is not None

    def compute(self, given: Sequence[Tensor], numbers: Sequence[Any]) -> tuple[Tensor, Sequence[Any]]:
        output = self.kind.function(*given)
        return output, [output] if self.kind.by_result else given

    def pull(self, kept: Sequence[Any], g: Tensor, before: Sequence[Some]) -> Sequence[Some]:
        return [added(before[0], self.kind.slope(g, *kept))]

    def push(self, kept: Sequence[Any], tangents: Sequence[Some]) -> Some:
        return None if tangents[0] is None else self.kind.slope(tangents[0], *kept)

    def turn(
        self, kept: Sequence[Any], g: Any, change: Some, tangents: Sequence[Some], before: Sequence[Some]
    ) -> Sequence[Some]:
        (of_x,), curve = tangents, self.kind.curve
        if of_x is not None and curve is not None:
            before = [added(before[0], curve(g * of_x, *kept))]
        return before if change is None else self.pull(kept, change, before)


def _curve_of_gelu(g: Tensor, x: Tensor) -> Tensor:
    # The normal density at x, times 2 - x^2.
    square = x * x
    density = (square * -0.5).exp_()
    return g * (square - 2) * density.mul_(-1 / math.sqrt(2 * math.pi))


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
GELU = Kind(F.gelu, False, lambda g, x: _aten.gelu_backward.default(g, x), _curve_of_gelu)
SQUARE = Kind(lambda x: x * x, False, lambda g, x: x * (g + g), lambda g, x: g + g)


def share_of(shape: torch.Size) -> float:
    """What each of a task's numbers adds to its mean."""
    return shape[0] / shape.numel()


def mean_of_each(x: Tensor, dim: int) -> Tensor:
    """The mean of each task's numbers, of a tensor with so many axes."""
    return x.mean(tuple(range(1, dim)))


def added(x: Some, y: Tensor) -> Tensor:
    """The sum."""
    return y if x is None else x + y


def plus_product(total: Some, x: Tensor, y: Tensor, *, fresh: bool = False) -> Tensor:
    """Some numbers, which may be written into if they are fresh, and products of matrices."""
    if total is None:
        return torch.bmm(x, y)
    return total.baddbmm_(x, y) if fresh else torch.bmm(x, y).add_(total)


def _along(dim: int, x: Any, g: Any) -> Any:
    # A number for each task, like g, for products with tensors with so many axes; or one for all.
    return x if isinstance(g, Number) else x.view(-1, *[1] * (dim - 1))
