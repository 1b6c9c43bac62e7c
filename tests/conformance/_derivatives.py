"""Plain derivatives, by which the columns judge the transformations, and what "equal" means."""

from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from _cases import Case, tensors
from _reference import weights_like
from torch import Tensor

import purenn as pn

TOLERANCE = 1e-9


def same(got: Any, expected: Any) -> None:
    """Check that two trees of tensors agree."""
    ours, theirs = tensors(got), tensors(expected)
    assert len(ours) == len(theirs), f"{len(ours)} tensors, expected {len(theirs)}"
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def derivatives(value: Tensor, point: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """The gradient of a number by plain autograd, zero where it does not depend on something."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in point]
    return list(torch.autograd.grad(value, point, create_graph=create_graph, allow_unused=True, materialize_grads=True))


def number_of(gradients: Sequence[Tensor]) -> Tensor:
    """One number of gradients, itself with derivatives that do not vanish."""
    return sum((torch.cos(g) * g * weights_like(g)).sum() for g in gradients)  # type: ignore[return-value]


def trained(p: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The trained leaves, and a function that puts others in their places."""
    chosen, rest = pn.tree.partition(p)
    leaves, spec = optree.tree_flatten(chosen)
    return leaves, lambda values: pn.tree.combine(optree.tree_unflatten(spec, values), rest)


def gradient(case: Case, function: Callable[..., Any], p: Any, number: int) -> list[Tensor]:
    """The gradient of ``function(p, floats, others)`` for example `number`, by plain autograd."""
    leaves, rebuilt = trained(p)
    floats, others = case.inputs(number)
    point = [x.detach().requires_grad_() for x in (*leaves, *floats)]
    value = function(rebuilt(point[: len(leaves)]), tuple(point[len(leaves) :]), others)
    return derivatives(value, point)


def against_differences(case: Case, *, second: bool) -> None:
    """Compare first or second derivatives with finite differences."""
    leaves, rebuilt = trained(case.p)
    floats, others = case.inputs()
    point = [x.detach().clone().requires_grad_() for x in (*leaves, *floats)]

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        return case.outputs(rebuilt(values[: len(leaves)]), values[len(leaves) :], others)

    check = torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    assert check(flat, point, fast_mode=True, nondet_tol=1e-12)
