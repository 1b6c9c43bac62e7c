"""Saying for every leaf whether a gradient reaches it, and if not, why."""

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from purenn.transforms._leaves import problem, scalar_output, split_aux
from purenn.tree._walk import PARAMETER, short


@attrs.frozen
class Explanation:
    """What `explain` found, one row for each leaf; printed, a table.

    Attributes:
        rows: pairs of the leaf's place and what happens to it.
    """

    rows: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max((len(where) for where, _ in self.rows), default=0)
        return "\n".join(f"{where.ljust(width)}  {what}" for where, what in self.rows)


def explain(
    fn: Callable[..., Any], *args: Any, argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Explanation:
    """For every leaf of the arguments that `pn.grad` would differentiate: its gradient's norm, or why it has none.

    Args:
        fn: as for `pn.grad`.
        *args: its arguments.
        argnums: as for `pn.grad`.
        has_aux: as for `pn.grad`.

    Raises:
        GradientError: as `pn.grad`: nothing to differentiate, or no scalar value.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = pn.tree.freeze(Linear.init(pn.random.key(0), 3, 2), "weight")
        >>> print(pn.explain(lambda p: p.bias.sum(), p))
        argument 0, 'weight'  not differentiated: it is frozen (pn.tree.unfreeze)
        argument 0, 'bias'    differentiated: the gradient's norm is 1.41
    """
    call = problem("explain", fn, args, {}, argnums)
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in call.values]
        value, _ = split_aux("explain", call.call(leaves), has_aux)
        scalar_output("explain", value)
        reached = value.requires_grad
        found = torch.autograd.grad(value, leaves, allow_unused=True) if reached else [None] * len(leaves)
    gradients = iter(found)
    rows = []
    for position, argument in zip(call.positions, call.arguments, strict=True):
        chosen = set(argument.chosen)
        for number, (leaf, value) in enumerate(zip(argument.structure.leaves, argument.leaves, strict=True)):
            where = f"argument {position}, {leaf.path!r}" if leaf.path else f"argument {position}"
            rows.append((where, _effect(next(gradients)) if number in chosen else _reason(leaf, value)))
    return Explanation(tuple(rows))


def _effect(gradient: Tensor | None) -> str:
    if gradient is None:
        return "differentiated, but the value does not depend on it: zeros"
    return f"differentiated: the gradient's norm is {float(gradient.norm()):.3g}"


def _reason(leaf: Any, value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"not differentiated: it is {short(value)}, no tensor"
    if leaf.kind != PARAMETER:
        return f"not differentiated: it is a {leaf.kind} (declare the field without pn.buffer())"
    if leaf.frozen:
        return "not differentiated: it is frozen (pn.tree.unfreeze)"
    return f"not differentiated: {short(value)} has no derivative (cast it to a floating dtype)"
