"""Convolutions of inputs without a gradient, in gradients that are differentiated again."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import purenn as pn
from purenn.layers import Conv1d, Conv2d, Conv3d

OPTIONS = [
    {},
    {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    {"padding": "same", "bias": False},
    {"stride": 2, "padding": 1, "padding_mode": "reflect"},
]


def _layer(cls: Any, device: torch.device, **options: Any) -> tuple[Any, Tensor, Tensor]:
    p = cls.init(pn.random.key(1, device), 4, 6, 3, **options, dtype=torch.float64)
    x = pn.random.normal(pn.random.key(2, device), (3, 4, *[7] * cls.dimensions), dtype=torch.float64)
    return p, x, pn.random.normal(pn.random.key(3, device), p(x).shape, dtype=torch.float64)


def _penalty(order: int, p: Any, x: Tensor, weights: Tensor) -> Tensor:
    """A loss for order 0, after that the square of the gradient of the one before."""
    if not order:
        return (p(x).sin() * weights).sum()
    gradients = pn.grad(lambda p: _penalty(order - 1, p, x, weights))(p)
    return sum(g.square().sum() for g in pn.tree.leaves(gradients))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cls", [Conv1d, Conv2d, Conv3d])
def test_equals_torch(cls: Any, options: dict[str, Any], device: torch.device) -> None:
    """Second derivatives are those of torch's module."""
    p, x, weights = _layer(cls, device, **options)
    module = getattr(nn, cls.__name__)(4, 6, 3, **options, dtype=torch.float64, device=device)
    module.load_state_dict(dict(pn.tree.named_leaves(p)))
    parameters = list(module.parameters())
    first = torch.autograd.grad((module(x).sin() * weights).sum(), parameters, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
    found = pn.tree.leaves(pn.grad(lambda p: _penalty(1, p, x, weights))(p))
    torch.testing.assert_close(found, list(expected), rtol=1e-10, atol=1e-10)


def test_every_order_and_transformation(device: torch.device) -> None:
    """Third derivatives, and second ones by transformations, are those where the input has a gradient."""
    p, x, weights = _layer(Conv2d, device)

    def first(p: Any) -> Any:
        return pn.grad(lambda p: _penalty(0, p, x, weights))(p)

    def third(p: Any) -> Any:
        return pn.grad(lambda p: _penalty(2, p, x, weights))(p)

    def second(p: Any, x: Tensor) -> Any:
        return pn.grad(lambda p: _penalty(1, p, x, weights))(p)

    def close(found: Any, other: Any) -> None:
        assert pn.tree.allclose(found, other, rtol=1e-10, atol=1e-10)

    close(third(p), pn.grad(lambda pair: _penalty(2, pair[0], pair[1], weights))((p, x))[0])
    expected = second(p, x)
    close(expected, torch.func.grad(lambda p: _penalty(1, p, x, weights))(p))
    close(expected, pn.jit(second, backend="eager")(p, x))
    close(expected, pn.tree.map(lambda g: g[0], pn.vmap(second, (None, 0))(p, x[None])))
    direction = pn.tree.map(torch.ones_like, p)
    _, forward = pn.jvp(first, (p,), (direction,))
    close(forward, pn.grad(lambda p: sum(g.sum() for g in pn.tree.leaves(first(p))))(p))


def test_rows_at_once(device: torch.device) -> None:
    """A gradient within, differentiated by torch for many cotangents at once, gives what it gives for each."""
    p, x, weights = _layer(Conv1d, device)
    bias = p.bias.clone().requires_grad_()
    weight = p.weight.clone().requires_grad_()
    inner = pn.grad(lambda p: _penalty(0, p, x, weights))(pn.replace(p, weight=weight, bias=bias))
    rows = torch.eye(6, dtype=torch.float64, device=device)
    leaves = [weight, bias]
    (batched, _) = torch.autograd.grad(inner.bias, leaves, rows, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(inner.bias, leaves, row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(batched, torch.stack(single), rtol=1e-12, atol=1e-12)


def test_autocast(device: torch.device) -> None:
    """Under autocast second derivatives are computed as well, to the digits that are left."""
    p, x, weights = (pn.tree.to(each, torch.float32) for each in _layer(Conv2d, device))
    with torch.autocast(device.type, torch.bfloat16):
        found = pn.grad(lambda p: _penalty(1, p, x, weights))(p)
    expected = pn.grad(lambda p: _penalty(1, p, x, weights))(p)
    size = max(float(leaf.abs().max()) for leaf in pn.tree.leaves(expected))
    assert pn.tree.allclose(found, expected, rtol=0, atol=0.2 * size)


def test_no_derivative_by_the_input_is_computed(device: torch.device) -> None:
    """torch's rule, which computes all second derivatives, is not run."""
    p, x, weights = _layer(Conv2d, device)

    def names(x: Tensor) -> set[str]:
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
            pn.grad(lambda p: _penalty(1, p, x, weights))(p)
        return {event.name for event in recorded.events()}

    assert "aten::_convolution_double_backward" not in names(x)
    assert "aten::_convolution_double_backward" in names(x.clone().requires_grad_())


def test_a_write_to_the_input_is_refused(device: torch.device) -> None:
    """As torch does, a gradient refuses an input that was changed after it was convolved."""
    p, x, weights = _layer(Conv2d, device)

    def written(p: Any) -> Tensor:
        loss = _penalty(0, p, x, weights)
        x.mul_(2)
        return loss

    message = (
        "grad: the function overwrites in place a value that the gradient needs. Write `y = f(x)` into a new name "
        "instead of changing x in place."
    )
    with pytest.raises(pn.errors.MutationError, match=f"^{re.escape(message)}$"):
        pn.grad(lambda p: pn.tree.leaves(pn.grad(written)(p))[0].sum())(p)
