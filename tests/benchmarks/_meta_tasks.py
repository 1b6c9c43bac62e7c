"""The two meta-learning problems that `meta.py` measures, by torch.autograd in plain forms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purenn as pn
from purenn.layers import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential

RATE = 0.01
Data = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class Problem(NamedTuple):
    """Tasks, a model, and its loss in all forms.

    Attributes:
        p: the model's parameters.
        data: support and query data of all tasks.
        loss: ``loss(p, x, y)`` of ours.
        by_hand: ``by_hand(leaves, x, y)``, the same in torch's functions.
        module: makes the same model as an nn.Module with the same parameters.
    """

    p: Any
    data: Data
    loss: Callable[..., Tensor]
    by_hand: Callable[..., Tensor]
    module: Callable[[], nn.Module]

    @property
    def criterion(self) -> Callable[..., Tensor]:
        """The loss of outputs."""
        return F.mse_loss if self.data[0][1].is_floating_point() else F.cross_entropy


def sinusoid(device: torch.device, dtype: torch.dtype = torch.float32) -> Problem:
    """Regression of sine curves: an MLP 1-40-40-1, 25 tasks, 10 shots."""
    k = pn.random.split(pn.random.key(0, device), 5)
    layers = [Linear.init(k[n], *sizes, dtype=dtype) for n, sizes in enumerate(((1, 40), (40, 40), (40, 1)))]
    p = Sequential.of(layers[0], ReLU(), layers[1], ReLU(), layers[2])
    x = pn.random.uniform(k[3], (2, 25, 10, 1), low=-5, high=5, dtype=dtype)
    phase, size = pn.random.uniform(k[4], (2, 25, 1, 1), low=0.1, high=3.1, dtype=dtype)
    y = size * (x + phase).sin()

    def by_hand(w: Any, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(F.linear(F.relu(F.linear(x, w[0], w[1])), w[2], w[3]))
        return F.mse_loss(F.linear(h, w[4], w[5]), y)

    def module() -> nn.Module:
        made = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
        return _filled(made.to(device, dtype), p)

    return Problem(p, ((x[0], y[0]), (x[1], y[1])), lambda p, x, y: F.mse_loss(p(x), y), by_hand, module)


def conv4(device: torch.device, dtype: torch.dtype = torch.float32) -> Problem:
    """Omniglot's network: 4 convolutions with 64 channels and batch statistics, 5-way 1-shot, 15 queries, 4 tasks."""
    k = pn.random.split(pn.random.key(0, device), 6)
    parts: list[Any] = []
    for n in range(4):
        parts += [Conv2d.init(k[n], 64 if n else 1, 64, 3, padding=1, dtype=dtype)]
        parts += [BatchNorm2d.init(64, track_running_stats=False, dtype=dtype, device=device), ReLU(), MaxPool2d(2)]
    p = Sequential.of(*parts, Flatten(), Linear.init(k[4], 64, 5, dtype=dtype))
    images = pn.random.normal(k[5], (4, 80, 1, 28, 28), dtype=dtype)
    labels = torch.arange(5, device=device).repeat(16).expand(4, 80)
    data = (images[:, :5], labels[:, :5]), (images[:, 5:], labels[:, 5:])

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        out = p(x)
        return F.cross_entropy(out[0] if pn.is_stateful(p) else out, y)

    def by_hand(w: Any, x: Tensor, y: Tensor) -> Tensor:
        for n in range(0, 16, 4):
            h = F.batch_norm(F.conv2d(x, w[n], w[n + 1], padding=1), None, None, w[n + 2], w[n + 3], True)
            x = F.max_pool2d(F.relu(h), 2)
        return F.cross_entropy(F.linear(x.flatten(1), w[16], w[17]), y)

    def module() -> nn.Module:
        blocks = []
        for n in range(4):
            blocks += [nn.Conv2d(64 if n else 1, 64, 3, padding=1), nn.BatchNorm2d(64, track_running_stats=False)]
            blocks += [nn.ReLU(), nn.MaxPool2d(2)]
        return _filled(nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 5)).to(device, dtype), p)

    return Problem(p, data, loss, by_hand, module)


PROBLEMS = {"sinusoid": sinusoid, "conv4": conv4}


def _filled(module: nn.Module, p: Any) -> nn.Module:
    with torch.no_grad():
        for parameter, leaf in zip(module.parameters(), pn.tree.leaves(p), strict=True):
            parameter.copy_(leaf)
    return module


def leaves(p: Any) -> list[Tensor]:
    """Copies of the parameters that require grad."""
    return [leaf.detach().clone().requires_grad_() for leaf in pn.tree.leaves(p)]


def one_task(data: Data, number: int) -> Data:
    """The data of one task."""
    (a, b), (c, d) = data
    return (a[number], b[number]), (c[number], d[number])


def autograd_loop(problem: Problem, steps: int) -> Callable[[], Any]:
    """The mean meta-gradient, task by task, as one writes it with torch.autograd."""
    start = leaves(problem.p)

    def gradient() -> Any:
        total: Any = 0
        count = len(problem.data[0][0])
        for number in range(count):
            (x, y), query = one_task(problem.data, number)
            w = start
            for _ in range(steps):
                grads = torch.autograd.grad(problem.by_hand(w, x, y), w, create_graph=True)
                w = [a - RATE * g for a, g in zip(w, grads, strict=True)]
            total = total + problem.by_hand(w, *query) / count
        return torch.autograd.grad(total, start)

    return gradient


def sum_of_tasks(problem: Problem, steps: int) -> Callable[[], Any]:
    """The same with parameters for every task, which get the gradient of the sum of all tasks' losses, under a vmap."""
    return _of_stacked(problem, steps, torch.vmap(problem.by_hand))


def batched_by_hand(problem: Problem, steps: int) -> Callable[[], Any]:
    """The same for the sinusoid's MLP, with its products written for the stacked parameters."""

    def loss(w: Any, x: Tensor, y: Tensor) -> Tensor:
        for n in range(0, len(w), 2):
            x = torch.baddbmm(w[n + 1][:, None], F.relu(x) if n else x, w[n].mT)
        return (x - y).square().mean((1, 2))

    return _of_stacked(problem, steps, loss)


def _of_stacked(problem: Problem, steps: int, losses: Callable[..., Tensor]) -> Callable[[], Any]:
    start = leaves(problem.p)
    support, query = problem.data

    def gradient() -> Any:
        w = [a.expand(len(support[0]), *a.shape) for a in start]
        for _ in range(steps):
            grads = torch.autograd.grad(losses(w, *support).sum(), w, create_graph=True)
            w = [a - RATE * g for a, g in zip(w, grads, strict=True)]
        return torch.autograd.grad(losses(w, *query).mean(), start)

    return gradient


def ours(problem: Problem, steps: int, how: Any, **options: Any) -> Callable[..., Any]:
    """Our meta-gradient as a function of the parameters and the data."""
    return pn.meta.grad(pn.meta.maml(problem.loss, pn.optim.sgd(RATE), steps, **options), how)
