"""A loss as the calls that lead to it: its gradients by their formulas, and products with its Hessian.

The derivative of the gradient is its forward derivative: fewer operations than to differentiate each of those that it
is made of.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.autograd.function import _SingleLevelFunction

from purenn.transforms._at_once_formulas import Formulas
from purenn.transforms._at_once_rules import Some
from purenn.transforms._lean import pulled_back


class Loss(NamedTuple):
    """A value of some leaves.

    Attributes:
        leaves: the leaves.
        formulas: its derivatives.
        kept: what they need: what the calls keep that lead to it.
        versions: those of the tensors among it, otherwise None.
        top: the gradient by the value.
    """

    leaves: Sequence[Tensor]
    formulas: Formulas
    kept: Sequence[Any]
    versions: Sequence[int | None]
    top: Any

    def is_written(self) -> bool:
        """Whether something that the derivatives need has been written into."""
        pairs = zip(self.kept, self.versions, strict=True)
        return any([version is not None and x._version != version for x, version in pairs])  # noqa: C419

    def gradients(self) -> tuple[list[Some], list[Any]]:
        """What `AtOnce.gradients` returns, and what `changes` needs of the gradients by the results of all calls."""
        written = self.formulas.gradients(in_place=_alike())
        return written(self.top, *self.leaves, *self.kept)

    def changes(self, bent: Sequence[Any], tangents: Sequence[Some]) -> list[Some]:
        """The changes of the gradients along tangents of the leaves, which are the same as gradients by the leaves.

        Args:
            bent: what `gradients` says is needed.
            tangents: those of the leaves.
        """
        given = [tangent for tangent in tangents if tangent is not None]
        written = self.formulas.changes(tuple([tangent is not None for tangent in tangents]), in_place=_alike())
        return written(*given, *bent, *self.kept)


def _alike() -> bool:
    # Under a vmap some may be batched and others not.
    return maybe_current_level() is None


class Gradients(_SingleLevelFunction):
    """The gradients of a loss, or the leaves after a step; their derivatives are products with the Hessian."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, bent: list[Any], found: list[Some], *leaves: Tensor) -> tuple[Some, ...]:
        """What has been found."""
        ctx.loss, ctx.bent = loss, bent
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *tangents: Some) -> tuple[Any, ...]:
        """The products."""
        loss: Loss = ctx.loss
        if loss.is_written():
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation"
            )
        if not torch.is_grad_enabled():
            return None, None, None, *loss.changes(ctx.bent, tangents)
        # A third derivative is asked for: by autograd, of what the gradients are made of.
        pairs = [
            (root, tangent)
            for root, tangent in zip(loss.gradients()[0], tangents, strict=True)
            if root is not None and root.requires_grad and tangent is not None
        ]
        roots, given = [root for root, _ in pairs], [tangent for _, tangent in pairs]
        return None, None, None, *pulled_back(roots, given, loss.leaves, recorded=True)
