"""Derivatives of norms with parameters, and a vmap, in every order: torch's functions and ours."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _reference import numbers
from torch import Tensor

import purenn as pn
from purenn import ops

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPE = 3, 4, 5


def in_operations(x: Tensor, weight: Tensor, bias: Tensor, over: tuple[int, ...]) -> Tensor:
    """The definition, with parameters for the second dimension."""
    centred = x - x.mean(over, keepdim=True)
    y = centred * (centred.square().mean(over, keepdim=True) + 1e-5).rsqrt()
    return y * weight[:, None] + bias[:, None]


def last(norm: Callable[..., Tensor]) -> Norm:
    """A norm over the last dimension as one over the second."""
    return lambda x, weight, bias: norm(x.mT, (4,), weight, bias).mT


NORMS: dict[str, tuple[Norm, tuple[int, ...]]] = {
    "batch": (lambda x, w, b: ops.batch_norm(x, None, None, w, b, train=True)[0], (0, 2)),
    "instance": (lambda x, w, b: ops.instance_norm(x, None, None, w, b)[0], (2,)),
    "layer": (last(lambda x, *given: ops.layer_norm(x, *given)), (1,)),
    "group": (lambda x, w, b: ops.group_norm(x, 4, w, b), (2,)),
    "F.batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (0, 2)),
    "F.instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), (2,)),
    "F.layer_norm": (last(F.layer_norm), (1,)),
    "F.group_norm": (lambda x, w, b: F.group_norm(x, 4, w, b), (2,)),
    "torch.batch_norm": (lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-5, False), (0, 2)),
    "torch.instance_norm": (lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, False), (2,)),
    "torch.layer_norm": (last(torch.layer_norm), (1,)),
}
# From the innermost to the outermost: reverse and forward derivatives, and one vmap over examples.
ORDERS = [
    (*kinds[:place], "vmap", *kinds[place:])
    for count in (2, 3)
    for kinds in itertools.product(("reverse", "forward"), repeat=count)
    for place in range(count + 1)
]


def number(norm: Norm, v: Tensor, x: Tensor) -> Tensor:
    """A curved number of a norm's parameters and of what moves its input, all in one vector."""
    return (norm(x * v[8:12, None], v[:4], v[4:8]).sin() * torch.arange(5.0, device=x.device)).mean()


def derivative(of: Any, norm: Norm, order: tuple[str, ...], v: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """The derivative in some directions of the sum over the examples."""

    def fn(v: Tensor, x: Tensor) -> Tensor:
        return number(norm, v, x)

    steps = iter(directions)
    for kind in order:
        fn = _one_more(of, kind, fn, x, next(steps) if kind != "vmap" else None)
    return fn(v, x)


def _one_more(of: Any, kind: str, fn: Callable[..., Tensor], whole: Tensor, direction: Any) -> Callable[..., Tensor]:
    if kind == "vmap":
        return lambda v, _: of.vmap(fn, (None, 0))(v, whole).sum()
    if kind == "reverse":
        return lambda v, x: (of.grad(fn)(v, x) * direction).sum()
    return lambda v, x: of.jvp(lambda v: fn(v, x), (v,), (direction,))[1]


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A vector of parameters, examples, and directions."""
    return (
        numbers(12, device=device),
        numbers(2, *SHAPE, seed=1, device=device),
        numbers(3, 12, seed=2, device=device),
    )


def by_autograd(over: tuple[int, ...], count: int, v: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """The same of the definition, by plain autograd and a loop."""
    v = v.clone().requires_grad_()
    value = torch.stack([number(lambda *given: in_operations(*given, over), v, row) for row in x]).sum()
    for direction in directions[:count]:
        value = (torch.autograd.grad(value, v, create_graph=True)[0] * direction).sum()
    return value.detach()


@pytest.mark.parametrize("name", NORMS)
def test_in_every_order(name: str, device: torch.device) -> None:
    """Two and three derivatives and a vmap give the definition's numbers, in whatever order."""
    norm, over = NORMS[name]
    v, x, directions = inputs(device)
    expected = {count: by_autograd(over, count, v, x, directions) for count in (2, 3)}
    for order in ORDERS:
        found = derivative(pn, norm, order, v, x, directions)
        assert (found - expected[len(order) - 1]).abs() < 1e-10, order


@pytest.mark.parametrize("name", [name for name in NORMS if "." not in name])
def test_by_torch_func(name: str, device: torch.device) -> None:
    """Ours have them under torch's transformations as well."""
    norm, over = NORMS[name]
    v, x, directions = inputs(device)
    expected = {count: by_autograd(over, count, v, x, directions) for count in (2, 3)}
    for order in ORDERS:
        found = derivative(torch.func, norm, order, v, x, directions)
        assert (found - expected[len(order) - 1]).abs() < 1e-10, order


@pytest.mark.parametrize(
    "order", [("reverse", "vmap", "reverse"), ("forward", "vmap", "reverse"), ("vmap", "forward", "reverse")]
)
@pytest.mark.parametrize("name", [name for name in NORMS if "." in name])
def test_around_and_compiled(name: str, order: tuple[str, ...], device: torch.device) -> None:
    """So do those that plain autograd takes around ours, and those of a jitted function."""
    norm, over = NORMS[name]
    v, x, directions = inputs(device)
    expected = by_autograd(over, 2, v, x, directions)
    jitted = pn.jit(lambda v: derivative(pn, norm, order, v, x, directions), backend="aot_eager")
    torch.testing.assert_close(jitted(v), expected, rtol=1e-9, atol=1e-11)
    leaf = v.clone().requires_grad_()
    inner = derivative(pn, norm, order[:-1], leaf, x, directions)
    (gradient,) = torch.autograd.grad(inner, leaf)
    torch.testing.assert_close((gradient * directions[1]).sum(), expected, rtol=1e-9, atol=1e-11)
