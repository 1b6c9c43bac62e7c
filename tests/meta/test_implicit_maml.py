"""Implicit MAML against closed forms and against differentiating a long inner loop."""

from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError
from purenn.layers import Linear, linear

DOUBLE = torch.float64


@pn.container
class Net:
    """A small network with a buffer and a frozen leaf."""

    hidden: Linear
    out: Linear
    scale: Tensor = pn.buffer()


def network(device: torch.device) -> Net:
    one, two = pn.random.split(pn.random.key(0))
    p = Net(Linear.init(one, 2, 4, dtype=DOUBLE), Linear.init(two, 4, 1, dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE))
    return pn.tree.to(pn.tree.freeze(p, "out.bias"), device)


def loss(p: Net, x: Tensor, y: Tensor) -> Tensor:
    return (linear(p.out, torch.tanh(linear(p.hidden, x))) * p.scale - y).square().mean()


def tasks(device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs [3, 6, 2] and targets [3, 6, 1] of three tasks."""
    x, y = (pn.random.normal(pn.random.key(n), (3, 6, 2), dtype=DOUBLE).to(device) for n in (1, 2))
    return x, y[..., :1]


def unrolled(p: Net, strength: Tensor, x: Tensor, y: Tensor) -> Net:
    """Regularised training, differentiated step by step."""
    start, rest = pn.tree.partition(p)

    def objective(trained: Net) -> Tensor:
        moves = pn.tree.map(lambda a, b: (a - b).square().sum(), trained, start)
        return loss(pn.tree.combine(trained, rest), x, y) + strength / 2 * sum(pn.tree.leaves(moves))

    trained = start
    for _ in range(60):
        trained = pn.tree.map(lambda w, g: w - 0.4 * g, trained, pn.grad(objective)(trained))
    return pn.tree.combine(trained, rest)


def test_meta_gradient_is_that_of_a_converged_inner_loop(device: torch.device) -> None:
    """Values and meta-gradients, of parameters and of the strength, equal those of the unrolled loop."""
    p, (x, y) = network(device), tasks(device)
    strength = torch.tensor(2.0, dtype=DOUBLE, device=device)

    def adapted(p: Net, strength: Tensor, x: Tensor, y: Tensor) -> Net:
        options = {"strength": strength, "iterations": 100, "tolerance": None}
        return pn.meta.implicit_inner_loop(loss, pn.optim.sgd(0.4), 60, **options)(p, x, y)

    def meta(inner: Any) -> Any:
        return pn.grad(lambda p, s, x, y: loss(inner(p, s, x[:4], y[:4]), x[4:], y[4:]), (0, 1))

    assert pn.tree.allclose(adapted(p, strength, x[0], y[0]), unrolled(p, strength, x[0], y[0]), rtol=0, atol=1e-9)
    right = [meta(unrolled)(p, strength, *task) for task in zip(x, y, strict=True)]
    for gradient, task in zip(right, zip(x, y, strict=True), strict=True):
        assert pn.tree.allclose(meta(adapted)(p, strength, *task), gradient, rtol=1e-7, atol=1e-9)
    batched = pn.vmap(meta(adapted), (None, None, 0, 0))(p, strength, x, y)
    assert pn.tree.allclose(batched, pn.tree.stack(right), rtol=1e-7, atol=1e-9)


def test_many_tasks(device: torch.device) -> None:
    """The meta-gradient of many tasks is the same in all ways, and compiles, inner loop and solver as loops."""
    p, (x, y) = network(device), tasks(device)
    task_loss = pn.meta.implicit_maml(loss, pn.optim.sgd(0.4, momentum=0.5), 5, iterations=3)
    support, query = (x[:, :4], y[:, :4]), (x[:, 4:], y[:, 4:])
    right = pn.meta.grad(task_loss, "loop")(p, support, query)
    for how in ("vmap", "sum"):
        assert pn.tree.allclose(pn.meta.grad(task_loss, how)(p, support, query), right, rtol=1e-9, atol=1e-10), how
    compiled = pn.jit(pn.meta.grad(task_loss, "vmap"), backend="aot_eager")
    assert pn.tree.allclose(compiled(p, support, query), right, rtol=1e-9, atol=1e-10)


def test_no_steps_and_errors(device: torch.device) -> None:
    """Without steps the parameters stay; a negative number of steps is an error."""
    p, (x, y) = network(device), tasks(device)
    assert pn.tree.equal(pn.meta.implicit_inner_loop(loss, pn.optim.adam(0.1), 0)(p, x[0], y[0]), p)
    with pytest.raises(ArgumentError) as error:
        pn.meta.implicit_maml(loss, pn.optim.adam(0.1), -1)
    assert str(error.value) == "implicit_inner_loop: steps must not be negative, got -1."
