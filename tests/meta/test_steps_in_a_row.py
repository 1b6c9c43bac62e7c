"""Inner loops whose steps are made in a row, for all tasks at once: nothing but the time differs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _meta_references import agree, leaves, mse, net_by_hand, network, one_task, tasks
from torch import Tensor

import purenn as pn
from purenn.errors import MutationError
from purenn.layers import Linear

OPTIMIZERS = {
    "sgd": pn.optim.sgd(0.1),
    "every option of sgd": pn.optim.sgd(0.1, momentum=0.9, dampening=0.1, weight_decay=0.01, maximize=True),
    "nesterov": pn.optim.sgd(0.1, momentum=0.9, nesterov=True),
    "a tensor": pn.optim.sgd(torch.tensor(0.1, dtype=torch.float64)),
    "a schedule": pn.optim.sgd(pn.optim.linear_schedule(0.1, 0.01, 3)),
    "scalars in the state": pn.optim.nadam(0.1),
    "adamw": pn.optim.adamw(0.1),
    "averages": pn.optim.asgd(0.1),
    "the norm of each leaf": pn.optim.lamb(0.1),
    "the norm of all leaves": pn.optim.chain(pn.optim.clip_by_global_norm(0.5), pn.optim.sgd(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser(device: torch.device, name: str) -> None:
    """Stacked tasks, tasks in a loop and tasks under vmap have one gradient through three steps of any optimiser."""
    p, data = network(device), tasks(device)
    task_loss = pn.meta.maml(mse, OPTIMIZERS[name], 3)
    wanted = leaves(pn.meta.grad(task_loss, "vmap")(p, *data))
    for how in ("sum", "loop"):
        agree(pn.meta.grad(task_loss, how)(p, *data), wanted)


@pytest.mark.parametrize("how", ["sum", "loop"])
def test_unused_and_frozen_leaves(device: torch.device, how: Any) -> None:
    """A leaf that the loss does not use has zeros for its gradient; a frozen one is neither adapted nor copied."""
    net, data = network(device), tasks(device)
    p = {"net": pn.tree.freeze(net, "layers.0.bias"), "unused": Linear.init(pn.random.key(3, device), 2, 1)}
    seen = []

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        seen.append(p["net"][0].bias is net[0].bias)
        return mse(p["net"], x, y)

    def whole(p: Any, support: Any, query: Any) -> Tensor:
        frozen = pn.replace(p, layers=(pn.tree.freeze(p[0], "bias"), p[1], p[2]))
        return pn.meta.maml(mse, pn.optim.sgd(0.1), 2)(frozen, support, query)

    found = pn.meta.grad(pn.meta.maml(loss, pn.optim.sgd(0.1), 2), how)(p, *data)
    expected = pn.meta.grad(whole, "vmap")(pn.tree.freeze(net, "layers.0.bias"), *data)
    agree(found["net"], leaves(expected))
    assert not any(leaf.any() for leaf in pn.tree.leaves(found["unused"]))
    assert all(seen)


@pytest.mark.parametrize("how", ["sum", "loop"])
def test_windows(device: torch.device, how: Any) -> None:
    """A loop that goes on from a state has the gradient of one that was never interrupted."""
    p, data = network(device), tasks(device)
    optimizer = pn.optim.adam(0.1)
    adapt = pn.meta.inner_loop(mse, optimizer, 2, resumable=True)

    def in_windows(p: Any, support: Any, query: Any) -> Tensor:
        p, _, state = adapt(p, *support)
        return mse(adapt(p, *support, state=state)[0], *query)

    wanted = leaves(pn.meta.grad(pn.meta.maml(mse, optimizer, 4), "vmap")(p, *data))
    agree(pn.meta.grad(in_windows, how)(p, *data), wanted)


def test_losses_and_parameters_of_each_step(device: torch.device) -> None:
    """Values and losses are those of steps that are written by hand."""
    p, data = network(device), tasks(device)
    adapt = pn.meta.inner_loop(mse, pn.optim.sgd(0.1), 3)

    def task_loss(p: Any, support: Any, query: Any) -> Any:
        adapted, losses = adapt(p, *support)
        return mse(adapted, *query), losses

    _, losses = pn.meta.grad(task_loss, "sum", has_aux=True)(p, *data)
    for number in range(3):
        support, _ = one_task(data, number)
        torch.testing.assert_close(losses[number], adapt(p, *support)[1], rtol=0, atol=1e-12)


def test_writing_into_parameters(device: torch.device) -> None:
    """A loss that writes into what it adapts is refused in later steps too, where the values are the loop's own."""
    p, data = network(device), tasks(device)
    calls = iter(range(2))

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        value = mse(p, x, y)
        if next(calls) == 1:
            p.layers[0].bias.add_(1.0)
        return value

    with pytest.raises(MutationError) as error:
        pn.meta.grad(pn.meta.maml(loss, pn.optim.sgd(0.1), 2), "sum")(p, *data)
    assert str(error.value) == (
        "inner_loop: the function writes in place into a parameter that is being differentiated. Arguments are never "
        "changed: write `w = w + d` instead of `w.add_(d)` or `w += d`."
    )


def squared_error_of_one(x: Tensor, y: Tensor) -> Tensor:
    """Of numbers without dimensions."""
    return F.mse_loss(x.sum(), y.sum())


@pytest.mark.parametrize(
    "error",
    [
        F.mse_loss,
        lambda x, y: F.mse_loss(input=x, target=y),
        lambda x, y: F.mse_loss(x, y, reduction="sum"),
        lambda x, y: F.mse_loss(x, y, reduction="none").mean(),
        lambda x, y: F.mse_loss(x, y, None, None, "mean"),
        lambda x, y: F.mse_loss(x, torch.full_like(x, 0.5)),
        squared_error_of_one,
        lambda x, y: pn.losses.mse_loss(x, y),
    ],
)
def test_squared_errors(device: torch.device, error: Callable[[Tensor, Tensor], Tensor]) -> None:
    """torch's squared error of stacked tasks has the value and the derivatives of each task's."""
    p, data = network(device), tasks(device)

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return error(net_by_hand(pn.tree.leaves(p), x), y)

    both = pn.meta.value_and_grad(pn.meta.maml(loss, pn.optim.sgd(0.01), 2), "sum")
    one_by_one = pn.meta.value_and_grad(pn.meta.maml(loss, pn.optim.sgd(0.01), 2), "loop")
    value, grads = both(p, *data)
    expected, wanted = one_by_one(p, *data)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    agree(grads, leaves(wanted))


def test_arguments_by_name(device: torch.device) -> None:
    """Products of stacked tasks are right when torch's function is told its arguments by their names."""
    p, data = network(device), tasks(device)

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        w = pn.tree.leaves(p)
        h = torch.tanh(F.linear(input=x, weight=w[0], bias=w[1]))
        return (F.linear(bias=w[3], weight=w[2], input=h) - y).square().mean()

    found, wanted = (pn.meta.grad(pn.meta.maml(loss, pn.optim.sgd(0.01), 2), how)(p, *data) for how in ("sum", "loop"))
    agree(found, leaves(wanted))
