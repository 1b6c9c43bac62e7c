"""Comparing a layer with the `torch.nn` module of the same name, in float64."""

from collections.abc import Callable
from typing import Any

import optree
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import purenn as pn

TOLERANCE = 1e-10


def numbers(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """Reproducible normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def per_dimension(data: st.DataObject, values: st.SearchStrategy, dimensions: int) -> Any:
    """One value for all dimensions, or one for each."""
    return data.draw(st.one_of(values, st.tuples(*[values] * dimensions)))


def filled(p: Any, module: nn.Module) -> Any:
    """The container with the values of the module's parameters and buffers, ready for autograd."""
    state, trained = module.state_dict(), dict(module.named_parameters())
    assert [name for name, _ in pn.tree.named_leaves(p)] == list(state)
    leaves = [value.clone().requires_grad_(name in trained) for name, value in state.items()]
    return optree.tree_unflatten(optree.tree_structure(p), leaves)


def check_equals_module(
    p: Any,
    function: Callable[..., Any],
    module: nn.Module,
    *inputs: Tensor,
    second_order: bool = True,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> None:
    """Check that container and module agree, and that the module itself may stand in the container's place.

    Args:
        p: container with the module's structure; its values are taken from the module.
        function: the layer's function.
        module: the reference, in float64.
        *inputs: arguments of both.
        second_order: whether the reference has second derivatives to compare with.
        tolerance: largest difference, relative or absolute.
        **options: keyword arguments of both.
    """
    p = filled(p, module)
    inputs = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
    ours, theirs = function(p, *inputs, **options), module(*inputs, **options)
    same(ours, theirs, tolerance=tolerance)
    same(function(module, *inputs, **options), ours, tolerance=0)
    differentiable = [x for x in inputs if x.is_floating_point()]
    leaves = [leaf for leaf in optree.tree_leaves(p) if leaf.requires_grad]
    y, expected = (out[0] if isinstance(out, tuple) else out for out in (ours, theirs))
    of_ours, of_theirs = [*differentiable, *leaves], [*differentiable, *module.parameters()]
    _same_gradients(y, expected, of_ours, of_theirs, again=second_order, tolerance=tolerance)


def _same_gradients(
    y: Tensor, expected: Tensor, of_ours: list[Tensor], of_theirs: list[Tensor], *, again: bool, tolerance: float
) -> None:
    ours, theirs = (
        torch.autograd.grad((torch.sin(value) * weights_like(value)).sum(), of, create_graph=again)
        for value, of in ((y, of_ours), (expected, of_theirs))
    )
    same(ours, theirs, tolerance=tolerance)
    if again:
        totals = [sum((g * weights_like(g)).sum() for g in gradients) for gradients in (ours, theirs)]
        if totals[1].requires_grad:
            second = [
                torch.autograd.grad(total, of, allow_unused=True, materialize_grads=True)
                for total, of in zip(totals, (of_ours, of_theirs), strict=True)
            ]
            same(*second, tolerance=tolerance)


def weights_like(value: Tensor) -> Tensor:
    """Unequal numbers in the shape of a tensor, so that a weighted sum of it hides nothing."""
    return torch.linspace(1, 2, value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)


def same(ours: Any, theirs: Any, *, tolerance: float = TOLERANCE) -> None:
    """Check that tensors, or tuples of them, agree to a tolerance; NaN equals NaN."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
