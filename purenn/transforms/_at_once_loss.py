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

_WRITTEN = "one of the variables needed for gradient computation has been modified by an inplace operation"


class Loss(NamedTuple):
    """A value of some leaves.

    Attributes:
        formulas: its derivatives.
        leaves: the leaves.
        kept: what the formulas need: what the calls keep that lead to the value.
        versions: see `versions_of`.
        top: the gradient by the value.
        is_step: whether not the gradients are asked for, but the leaves plus the gradients.
        again: computes everything once more, see `Formulas.whole`; None if the value and what is kept have graphs.
    """

    formulas: Formulas
    leaves: Sequence[Tensor]
    kept: Sequence[Any]
    versions: Sequence[int | None]
    top: Any
    is_step: bool
    again: Callable[[], Any] | None = None

    def is_written(self) -> bool:
        """Whether something that the derivatives need has been written into."""
        pairs = zip(self.kept, self.versions, strict=True)
        return any([version is not None and x._version != version for x, version in pairs])  # noqa: C419

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


def versions_of(kept: Sequence[Any]) -> list[int | None]:
    """The versions of the tensors among what is kept, otherwise None."""
    return [x._version if isinstance(x, Tensor) else None for x in kept]


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
        self, leaves: Sequence[Tensor], data: Sequence[Tensor], rate: float | None, *, is_recorded: bool
    ) -> tuple[Tensor, Sequence[Some]]:
        """The value, and what `AtOnce.gradients` returns."""
        scale, is_step = 1.0 if rate is None else -rate, rate is not None
        versions = versions_of(data)

        def whole() -> Any:
            if versions_of(data) != versions:
                raise RuntimeError(_WRITTEN)
            written = self.formulas.whole(self.inputs, len(data), is_step, _is_alone())
            return written(scale, *leaves, *data, *self.numbers)

        with temporarily_clear_interpreter_stack():
            with torch.no_grad():
                total, found, bent, kept = whole()
            if is_recorded:
                loss = Loss(self.formulas, leaves, kept, versions_of(kept), scale, is_step, whole)
                total, *found = recorded(loss, bent, [total, *found])
        return total, found


def recorded(loss: Loss, bent: Sequence[Any], results: Sequence[Some]) -> Any:
    """What `Loss.gradients` has found, after the value if that has no graph, so that it can be differentiated."""
    # Apart, since what belongs to the graph of the gradients must not hold them.
    return Gradients.apply(loss, bent, results, *loss.leaves)  # pyright: ignore[reportAttributeAccessIssue]


class Gradients(_SingleLevelFunction):
    """The gradients of a loss, or the leaves after a step; their derivatives are products with the Hessian."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, bent: Sequence[Any], results: list[Some], *leaves: Tensor) -> tuple[Some, ...]:
        """What has been found."""
        ctx.loss, ctx.bent = loss, bent
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Some) -> tuple[Any, ...]:
        """The products."""
        loss: Loss = ctx.loss
        if loss.is_written():
            raise RuntimeError(_WRITTEN)
        of_total, *tangents = cotangents if loss.again else (None, *cotangents)
        if torch.is_grad_enabled():
            return None, None, None, *_by_autograd(loss, of_total, tangents)
        found = loss.changes(ctx.bent, tangents)
        if of_total is not None:
            plain, _ = loss._replace(top=of_total, is_step=False).gradients()
            found = [y if x is None else x if y is None else x + y for x, y in zip(found, plain, strict=True)]
        return None, None, None, *found


def _by_autograd(loss: Loss, of_total: Some, tangents: Sequence[Some]) -> Sequence[Some]:
    # Where a third derivative is asked for: of what the gradients are made of.
    total, found = loss.again()[:2] if loss.again else (None, loss.gradients()[0])
    pairs = [
        (root, tangent)
        for root, tangent in zip([total, *found], [of_total, *tangents], strict=True)
        if root is not None and root.requires_grad and tangent is not None
    ]
    return pulled_back([root for root, _ in pairs], [tangent for _, tangent in pairs], loss.leaves, recorded=True)
