"""A loss as the calls that lead to it: its gradients by their formulas, and products with its Hessian.

The derivative of the gradient is its forward derivative: fewer operations than to differentiate each of those that it
is made of.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd.function import _SingleLevelFunction

from purenn.transforms._at_once_formulas import Formulas
from purenn.transforms._at_once_rules import Some
from purenn.transforms._lean import pulled_back
from purenn.transforms._leaves import versions

_WRITTEN = "one of the variables needed for gradient computation has been modified by an inplace operation"


class Loss(NamedTuple):
    """A value of some leaves.

    Attributes:
        formulas: its derivatives.
        leaves: the leaves.
        kept: what the formulas need: what the calls keep that lead to the value.
        versions: how often each has been written to when it was.
        top: the gradient by the value.
        is_step: whether not the gradients are asked for, but the leaves plus the gradients.
    """

    formulas: Formulas
    leaves: Sequence[Tensor]
    kept: Sequence[Any]
    versions: list[int]
    top: Any
    is_step: bool

    def is_written(self) -> bool:
        """Whether something that the derivatives need has been written into."""
        return versions(self.kept) != self.versions

    def gradients(self) -> tuple[list[Some], list[Any]]:
        """The gradients, or the leaves plus them, and what `changes` needs of the gradients by the results of calls.

        None stands for zero gradients.
        """
        written = self.formulas.gradients(self.is_step, not isinstance(self.top, Tensor), _is_alone())
        return written(self.top, *self.leaves, *self.kept)

    def changes(self, bent: Sequence[Any], tangents: Sequence[Some]) -> list[Some]:
        """The changes of what `gradients` returns along tangents of the leaves: the gradients by these as well.

        Args:
            bent: what `gradients` says is needed.
            tangents: those of the leaves.
        """
        is_given = tuple([tangent is not None for tangent in tangents])
        written = self.formulas.changes(is_given, self.is_step, _is_alone())
        return written(*[tangent for tangent in tangents if tangent is not None], *bent, *self.kept)


def _is_alone() -> bool:
    # Whether what is computed here is neither differentiated nor, some of it, batched.
    return maybe_current_level() is None and not torch.is_grad_enabled()


class Gradients(_SingleLevelFunction):
    """The gradients of a loss, or the leaves after a step; their derivatives are products with the Hessian."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, bent: Sequence[Any], found: Sequence[Some], *leaves: Tensor) -> tuple[Some, ...]:
        """What has been found: apart, since what belongs to the graph of it must not hold it."""
        ctx.loss, ctx.bent = loss, bent
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *tangents: Some) -> tuple[Any, ...]:
        """The products."""
        loss: Loss = ctx.loss
        _require_unwritten(loss)
        if torch.is_grad_enabled():
            found = _by_autograd(loss.gradients()[0], tangents, loss.leaves)
        else:
            found = loss.changes(ctx.bent, tangents)
        return None, None, None, *found


def _require_unwritten(*losses: Loss) -> None:
    if any(loss.is_written() for loss in losses):
        raise RuntimeError(_WRITTEN)


def _by_autograd(roots: Sequence[Some], cotangents: Sequence[Some], leaves: Sequence[Tensor]) -> Sequence[Some]:
    # Where a third derivative is asked for: of what the gradients are made of.
    pairs = [
        (root, cotangent)
        for root, cotangent in zip(roots, cotangents, strict=True)
        if root is not None and root.requires_grad and cotangent is not None
    ]
    return pulled_back([root for root, _ in pairs], [given for _, given in pairs], leaves, recorded=True)


class Forward(NamedTuple):
    """How a value and its derivatives are computed of leaves and data.

    Attributes:
        formulas: the derivatives.
        inputs: see `Formulas.whole`.
        numbers: what the calls keep that is no tensor.
    """

    formulas: Formulas
    inputs: tuple[tuple[int, ...], ...]
    numbers: Sequence[Any]

    def __call__(
        self, leaves: Sequence[Tensor], data: Sequence[Sequence[Tensor]], rates: Sequence[float | None], recorded: bool
    ) -> tuple[list[Tensor], list[Any]]:
        """The values before some steps, and the leaves after them.

        Args:
            leaves: the leaves.
            data: those of each step.
            rates: the multiples of the gradients by which the steps go down. Of a single step without one not the
                leaves are returned, but the gradients, None for those that are zero. If there are no rates there is one
                value and nothing else.
            recorded: whether what is returned can be differentiated.
        """
        before = [versions(each) for each in data]

        def again() -> _Steps:
            if [versions(each) for each in data] != before:
                raise RuntimeError(_WRITTEN)
            return self._steps(leaves, data, rates)

        with temporarily_clear_interpreter_stack():
            with torch.no_grad():
                steps = self._steps(leaves, data, rates)
            if not recorded:
                return steps.values, steps.found
            results = Repeated.apply(steps.losses, steps.bent, again, (*steps.values, *steps.found), *leaves)  # pyright: ignore[reportAttributeAccessIssue]
        return results[: len(data)], results[len(data) :]

    def _steps(
        self, leaves: Sequence[Tensor], data: Sequence[Sequence[Tensor]], rates: Sequence[float | None]
    ) -> "_Steps":
        steps, is_step = _Steps([], [], [], []), rates[0] is not None if rates else None
        scales = [1.0 if rate is None else -rate for rate in rates or [None]]
        for each, scale in zip(data, scales, strict=True):
            written = self.formulas.whole(self.inputs, len(each), is_step, _is_alone())
            value, found, bent, kept = written(scale, *leaves, *each, *self.numbers)
            steps.values.append(value)
            steps.losses.append(Loss(self.formulas, leaves, kept, versions(kept), scale, bool(is_step)))
            steps.bent.append(bent)
            if is_step:
                leaves = found = [old if new is None else new for old, new in zip(leaves, found, strict=True)]
            steps.found[:] = found
        return steps


class _Steps(NamedTuple):
    values: list[Tensor]
    found: list[Some]
    losses: list[Loss]
    bent: list[Any]


class Repeated(_SingleLevelFunction):
    """What `Forward` returns."""

    @staticmethod
    def forward(
        ctx: Any, losses: list[Loss], bent: list[Any], again: Callable[[], _Steps], results: tuple, *leaves: Tensor
    ) -> tuple[Some, ...]:
        """The results, again apart."""
        ctx.losses, ctx.bent, ctx.again, ctx.leaves = losses, bent, again, leaves
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Some) -> tuple[Any, ...]:
        """Through one step after the other."""
        losses: list[Loss] = ctx.losses
        _require_unwritten(*losses)
        if torch.is_grad_enabled():
            steps = ctx.again()
            return None, None, None, None, *_by_autograd([*steps.values, *steps.found], cotangents, ctx.leaves)
        of_values, found = cotangents[: len(losses)], cotangents[len(losses) :]
        for loss, bent, of_value in zip(losses[::-1], ctx.bent[::-1], of_values[::-1], strict=True):
            found = loss.changes(bent, found) if found else [None] * len(loss.leaves)
            if of_value is not None:
                plain, _ = loss._replace(top=of_value, is_step=False).gradients()
                found = [y if x is None else x if y is None else x + y for x, y in zip(found, plain, strict=True)]
        return None, None, None, None, *found
