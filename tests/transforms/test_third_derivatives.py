"""Third derivatives: right for every layer, and for normalisations in whatever way they are taken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _exceptions import reason
from _reference import numbers
from _rows import ROWS, cases
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn import ops

Scalar = Callable[[Tensor], Tensor]
SHAPE = 4, 6, 5


def reverse(of: Any, f: Scalar, direction: Tensor) -> Scalar:
    """The derivative of a function in a direction, by a gradient."""
    return lambda x: (of.grad(f)(x) * direction).sum()


def forward(of: Any, f: Scalar, direction: Tensor) -> Scalar:
    """The derivative of a function in a direction, by forward mode."""
    return lambda x: of.jvp(f, (x,), (direction,))[1]


def in_operations(dims: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """What a normalisation over some dimensions is."""

    def normalised(x: Tensor) -> Tensor:
        centred = x - x.mean(dims, keepdim=True)
        return centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()

    return normalised


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "batch": (lambda x: ops.batch_norm(x, train=True)[0], in_operations((0, 2))),
    "instance": (lambda x: ops.instance_norm(x, train=True)[0], in_operations((2,))),
    "layer": (lambda x: ops.layer_norm(x, (6, 5)), in_operations((1, 2))),
    "rms": (lambda x: ops.rms_norm(x, (5,), eps=1e-5), lambda x: x / (x.square().mean(-1, True) + 1e-5).sqrt()),
    "group": (
        lambda x: ops.group_norm(x, 2),
        lambda x: in_operations((2, 3))(x.unflatten(1, (2, 3)).flatten(2)[:, :, None]).reshape(x.shape),
    ),
    "module": (bridge.from_module(nn.LayerNorm(5, elementwise_affine=False)), in_operations((2,))),
}
WAYS: dict[str, tuple[Callable[[Any, Scalar, Tensor], Scalar], ...]] = {
    "reverse thrice": (reverse, reverse, reverse),
    "forward over reverse": (reverse, reverse, forward),
    "reverse over forward": (forward, reverse, reverse),
    "reverse around forward": (reverse, forward, reverse),
    "forward thrice": (forward, forward, forward),
}


def third(of: Any, way: str, norm: Callable[[Tensor], Tensor], directions: Tensor) -> Scalar:
    """A third derivative of a curved number of what a normalisation gives."""

    def f(x: Tensor) -> Tensor:
        return (norm(x) * directions[0]).sin().sum()

    for step, direction in zip(WAYS[way], directions[1:], strict=True):
        f = step(of, f, direction)
    return f


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NORMS)
def test_normalisations(name: str, way: str, device: torch.device) -> None:
    """By purenn's and by torch's transformations, and batched, they are those of ordinary operations."""
    norm, plain = NORMS[name]
    x, directions = numbers(2, *SHAPE, device=device), numbers(4, *SHAPE, seed=1, device=device)
    expected = torch.stack([third(torch.func, way, plain, directions)(row) for row in x])
    ours = third(pn, way, norm, directions)
    torch.testing.assert_close(pn.vmap(ours)(x), expected, rtol=1e-9, atol=1e-9)
    for call in (ours, third(torch.func, way, norm, directions)):
        torch.testing.assert_close(call(x[0]), expected[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_jitted(name: str, device: torch.device) -> None:
    """They are the same where all of it is jitted, and where only the function is that is differentiated."""
    x, directions = numbers(*SHAPE, device=device), numbers(4, *SHAPE, seed=1, device=device)
    norm, plain = NORMS[name]
    expected = third(torch.func, "reverse thrice", plain, directions)(x)
    inside = third(pn, "reverse thrice", pn.jit(norm, backend="eager"), directions)
    for call in (pn.jit(third(pn, "reverse thrice", norm, directions), backend="eager"), inside):
        torch.testing.assert_close(call(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_normalisations_in_half_precision(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Below two derivatives a result has the dtype of the input, and is as exact as by itself."""
    norm, _ = NORMS[name]
    x, seen = numbers(*SHAPE, device=device).to(dtype), []

    def f(x: Tensor) -> Tensor:
        seen.append(norm(x).detach())
        return seen[-1].sum() + x.sum()

    pn.grad(lambda x: pn.grad(lambda x: pn.grad(f)(x).sum() + x.sum())(x).sum() + x.sum())(x)
    torch.testing.assert_close(seen[0], norm(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("row", ROWS)
def test_every_layer(row: str) -> None:
    """The gradient of a gradient of a gradient is the difference quotient of the gradient of a gradient."""
    (case, *_) = cases(row, 1)
    if reason(row, "grad(vmap(grad))") or reason(row, "second order"):
        pytest.skip("the conformance matrix has a reason why it has no second derivative")
    floats, others = case.inputs()
    point = {"p": pn.tree.partition(case.p)[0], "floats": list(floats)}
    if not pn.tree.leaves(point):
        pytest.skip("nothing to differentiate")
    directions = [pn.tree.map(lambda x, n=n: numbers(*x.shape, seed=n), point) for n in range(3)]

    def loss(point: Any) -> Tensor:
        return case.loss(pn.tree.combine(point["p"], pn.tree.partition(case.p)[1]), point["floats"], others)

    def derivative(f: Callable[[Any], Tensor], number: int) -> Callable[[Any], Tensor]:
        def dot(point: Any) -> Tensor:
            parts = pn.tree.map(lambda g, d: (g * d).sum(), pn.grad(f)(point), directions[number])
            return torch.stack(pn.tree.leaves(parts)).sum()

        return dot

    second = derivative(derivative(loss, 0), 1)
    h = 1e-6

    def moved(steps: float) -> Tensor:
        return second(pn.tree.map(lambda x, d: x + steps * h * d, point, directions[2]))

    expected = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * h)
    torch.testing.assert_close(derivative(second, 2)(point), expected, rtol=1e-4, atol=1e-5)
