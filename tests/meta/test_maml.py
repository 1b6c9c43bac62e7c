"""MAML's relatives against plain torch.autograd."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _meta_references import DOUBLE, adapted_by_hand, agree, leaves, loss_by_hand, mse, network, one_task, tasks
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import ArgumentError
from purenn.layers import Linear, linear

WAYS = ["vmap", "sum", "loop"]
SGD = pn.optim.sgd(0.1)


@pytest.fixture(params=["native", "opaque"])
def model(request: pytest.FixtureRequest, device: torch.device) -> Any:
    """The network as a native and as an opaque container."""
    p = network(device)
    if request.param == "native":
        return p
    module = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).to(device, DOUBLE)
    with torch.no_grad():
        for parameter, leaf in zip(module.parameters(), pn.tree.leaves(p), strict=True):
            parameter.copy_(leaf)
    return bridge.from_module(module)


def mean_gradient(start: list[Tensor], data: Any, task: Any) -> list[Tensor]:
    """Of three tasks' losses, by torch.autograd; without those leaves that have no part in it."""
    value = sum(task(start, *one_task(data, number)) for number in range(3)) / 3
    return list(torch.autograd.grad(value, start, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("variant", ["maml", "first order", "anil", "truncated"])
def test_maml_and_variants(model: Any, device: torch.device, how: Any, variant: str) -> None:
    """MAML, first-order MAML, ANIL and truncated MAML have the gradient that plain autograd has."""
    head = "layers.2" if hasattr(model, "layers") else "2"
    options: dict[str, Any] = {
        "maml": {},
        "first order": {"first_order": True},
        "anil": {"select": head},
        "truncated": {"truncate": 1},
    }[variant]

    def by_hand(w: list[Tensor], support: Any, query: Any) -> Tensor:
        if variant in ("maml", "anil"):
            only = (2, 3) if variant == "anil" else ()
            return loss_by_hand(adapted_by_hand(w, 0.1, 3, *support, only=only), *query)
        exact = 1 if variant == "truncated" else 0
        early = adapted_by_hand(w, 0.1, 3 - exact, *support)
        moved = [a + (b - a).detach() for a, b in zip(w, early, strict=True)]
        return loss_by_hand(adapted_by_hand(moved, 0.1, exact, *support), *query)

    data = tasks(device)
    found = pn.meta.grad(pn.meta.maml(mse, SGD, 3, **options), how)(model, *data)
    agree(found, mean_gradient(leaves(model), data, by_hand))


def test_reptile(model: Any, device: torch.device) -> None:
    """The direction is the mean of the way back from the adapted parameters, in eager and under jit."""
    (x, y), _ = tasks(device)
    start = leaves(model)
    back = [
        [(a - b).detach() for a, b in zip(start, adapted_by_hand(start, 0.1, 3, x[n], y[n]), strict=True)]
        for n in range(3)
    ]
    expected = [torch.stack(column).mean(0) for column in zip(*back, strict=True)]
    direction = pn.meta.reptile(mse, SGD, 3)
    agree(direction(model, x, y), expected)
    agree(pn.jit(direction, backend="eager")(model, x, y), expected)
    agree(direction(model, x[:1], y[:1]), back[0])


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("per", ["number", "leaf"])
def test_meta_sgd(model: Any, device: torch.device, how: Any, per: str) -> None:
    """Parameters and their step sizes are learned together."""
    meta, data = pn.meta.MetaSGD.init(model, 0.1, per=per), tasks(device)
    count = len(leaves(model))
    shapes = [leaf.shape if per == "number" else () for leaf in leaves(model)]
    assert [leaf.shape for leaf in pn.tree.leaves(meta.rates)] == shapes

    def by_hand(both: list[Tensor], support: Any, query: Any) -> Tensor:
        return loss_by_hand(adapted_by_hand(both[:count], both[count:], 2, *support), *query)

    found = pn.meta.grad(pn.meta.meta_sgd(mse, 2), how)(meta, *data)
    agree(found, mean_gradient([*leaves(meta.params), *leaves(meta.rates)], data, by_hand))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("unroll", ["python", "vjp"])
def test_cavia(device: torch.device, how: Any, unroll: Any) -> None:
    """Tasks adapt context parameters, an extra input, and the model is learned."""
    p = Linear.init(pn.random.key(0, device), 4, 1, dtype=DOUBLE)
    context, data = torch.zeros(2, dtype=DOUBLE, device=device), tasks(device)

    def loss(p: Any, context: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (linear(p, torch.cat([x, context.expand(len(x), 2)], 1)).tanh() - y).square().mean()

    def by_hand(w: list[Tensor], support: Any, query: Any) -> Tensor:
        def value(c: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            return (F.linear(torch.cat([x, c[0].expand(len(x), 2)], 1), *w).tanh() - y).square().mean()

        return value(adapted_by_hand([context.clone().requires_grad_()], 0.3, 2, *support, loss=value), *query)

    task_loss = pn.meta.cavia(loss, context, pn.optim.sgd(0.3), 2, unroll=unroll)
    agree(pn.meta.grad(task_loss, how)(p, *data), mean_gradient(leaves(p), data, by_hand))


def test_meta_sgd_options() -> None:
    """Step sizes are for each number or for each leaf."""
    with pytest.raises(ArgumentError) as error:
        pn.meta.MetaSGD.init({"w": torch.ones(1)}, per="layer")
    assert str(error.value) == "MetaSGD.init: per must be 'number' or 'leaf', got 'layer'."
