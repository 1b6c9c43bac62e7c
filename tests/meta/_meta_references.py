"""A small network, its tasks, and inner loops by plain torch.autograd to compare with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, Sequential, Tanh

DOUBLE = torch.float64
Step = Callable[[list[Tensor], list[Tensor], Tensor | float], list[Tensor]]


def network(device: torch.device) -> Sequential:
    """Two linear maps, 2 -> 5 -> 1, with a tanh between."""
    one, two = pn.random.split(pn.random.key(0, device))
    return Sequential.of(Linear.init(one, 2, 5, dtype=DOUBLE), Tanh(), Linear.init(two, 5, 1, dtype=DOUBLE))


def mse(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return (p(x) - y).square().mean()


def tasks(device: torch.device, count: int = 3) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Support and query data, inputs ``[count, 6, 2]`` and targets ``[count, 6, 1]``."""
    x, u = (pn.random.normal(pn.random.key(n, device), (count, 6, 2), dtype=DOUBLE) for n in (1, 2))
    phase = torch.arange(count, dtype=DOUBLE, device=device)[:, None, None]
    return (x, (x[..., :1] + phase).sin()), (u, (u[..., :1] + phase).sin())


def one_task(data: Any, number: int) -> Any:
    """The data of one task."""
    return tuple(tuple(x[number] for x in part) for part in data)


def net_by_hand(w: Sequence[Tensor], x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, w[0], w[1])), w[2], w[3])


def loss_by_hand(w: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (net_by_hand(w, x) - y).square().mean()


def leaves(p: Any) -> list[Tensor]:
    """Copies of the trained leaves that require grad."""
    return [leaf.detach().clone().requires_grad_() for leaf in pn.tree.leaves(pn.tree.partition(p)[0])]


def adapted_by_hand(
    w: list[Tensor], rate: Any, steps: int, *data: Tensor, loss: Callable = loss_by_hand, only: Sequence[int] = ()
) -> list[Tensor]:
    """Gradient descent that keeps its graph; with `only`, of some of the leaves."""
    places = list(only) or list(range(len(w)))
    w = list(w)
    for _ in range(steps):
        grads = torch.autograd.grad(loss(w, *data), [w[n] for n in places], create_graph=True)
        for n, g in zip(places, grads, strict=True):
            w[n] = w[n] - (rate[n] if isinstance(rate, list) else rate) * g
    return w


def agree(found: Any, expected: Sequence[Tensor], tolerance: float = 1e-11) -> None:
    """Check that the leaves of a tree are some tensors."""
    ours = pn.tree.leaves(found)
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
