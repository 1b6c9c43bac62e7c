"""A loss as the calls that lead to it: its gradients by their formulas, and products with its Hessian.

The derivative of the gradient is its forward derivative: fewer operations than to differentiate each of those that it
is made of.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from purenn.transforms._at_once_rules import Rule, Some
from purenn.transforms._lean import pulled_back


class Call(NamedTuple):
    """A call of one of the functions.

    Attributes:
        places: for each input the place of its gradient; None if it does not depend on the leaves.
        rule: its derivatives.
        is_value: whether the result is one number for each task.
        needed: how many tensors its rule and those of the calls before keep.
    """

    places: list[int | None]
    rule: Rule
    is_value: bool
    needed: int

    def of(self, entries: Sequence[Some]) -> list[Some]:
        """Those of the inputs."""
        return [None if place is None else entries[place] for place in self.places]

    def put(self, entries: list[Some], new: Sequence[Some]) -> None:
        """Replace them."""
        for place, entry in zip(self.places, new, strict=True):
            if place is not None:
                entries[place] = entry


class Loss(NamedTuple):
    """The calls that lead from some leaves to a value.

    Attributes:
        leaves: the leaves.
        calls: the calls, the last of which gives the value.
        needed: what their rules keep, with the version of each.
        top: the gradient by the value.
        rate: see `AtOnce.gradients`.
    """

    leaves: Sequence[Tensor]
    calls: list[Call]
    needed: list[tuple[Tensor, int]]
    top: Any
    rate: float | None

    def is_written(self) -> bool:
        """Whether something that the derivatives need has been written into."""
        return any([x._version != version for x, version in self.needed])  # noqa: C419

    def gradients(self) -> tuple[list[Some], list[Any]]:
        """What `AtOnce.gradients` returns, and what `changes` needs of the gradients by the results of all calls."""
        calls = self.calls
        needed: list[Any] = [None] * len(calls)
        found = self._start(self.leaves)
        found[-1] = self.top
        for number in range(len(calls) - 1, -1, -1):
            call, g = calls[number], found.pop()
            if g is not None:
                needed[number] = g if call.rule.bends else 1.0
                call.put(found, call.rule.pull(g, call.of(found)))
        return [None if x is leaf else x for x, leaf in zip(found, self.leaves, strict=True)], needed

    def changes(self, cotangents: Sequence[Any], tangents: Sequence[Some]) -> list[Some]:
        """The changes of the gradients along tangents of the leaves, which are the same as gradients by the leaves.

        Args:
            cotangents: what `gradients` says is needed.
            tangents: those of the leaves.
        """
        calls = self.calls
        along: list[Some] = [*tangents]
        for call, g in zip(calls[:-1], cotangents, strict=False):
            along.append(None if g is None else call.rule.push(call.of(along)))
        found = self._start(tangents)
        for number in range(len(calls) - 1, -1, -1):
            call, g, change = calls[number], cotangents[number], found.pop()
            if g is not None:
                call.put(found, call.rule.turn(g, change, call.of(along), call.of(found)))
        return found

    def _start(self, leaves: Sequence[Some]) -> list[Any]:
        return [*([None] * len(leaves) if self.rate is None else leaves), *[None] * len(self.calls)]


class Gradients(_SingleLevelFunction):
    """The gradients of a loss, or the leaves after a step; their derivatives are products with the Hessian."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, cotangents: list[Any], found: list[Some], *leaves: Tensor) -> tuple[Some, ...]:
        """What has been found."""
        ctx.loss, ctx.cotangents = loss, cotangents
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
            return None, None, None, *loss.changes(ctx.cotangents, tangents)
        # A third derivative is asked for: by autograd, of what the gradients are made of.
        pairs = [
            (root, tangent)
            for root, tangent in zip(loss.gradients()[0], tangents, strict=True)
            if root is not None and root.requires_grad and tangent is not None
        ]
        roots, given = [root for root, _ in pairs], [tangent for _, tangent in pairs]
        return None, None, None, *pulled_back(roots, given, loss.leaves, recorded=True)
