"""Meta-learning of modules: opaque containers in inner loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import bridge
import purenn as pn

DOUBLE = torch.float64
RATE, STEPS = 0.1, 2


class Convolutional(nn.Module):
    """With statistics of the batch, groups, a tie, and a layer whose parameters nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 2, bias=False), nn.BatchNorm2d(4)
        self.grouped, self.groups = nn.Conv2d(4, 4, 2, groups=2, stride=2), nn.GroupNorm(2, 4)
        self.once, self.again, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.again.weight = self.once.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(self.grouped(self.norm(self.convolution(x)).relu())).mean((2, 3))
        self.unused(x)
        return self.again(self.once(x).tanh())


def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return (p(x, train=True)[0] - y).square().mean()


def meta_gradients(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By plain autograd, task by task."""
    start = dict(module.named_parameters())
    total = torch.zeros((), dtype=DOUBLE, device=x.device)
    for task in range(len(x)):
        now = start
        for step in range(STEPS + 1):
            tensors = {name: tensor.clone() for name, tensor in module.named_buffers()} | now
            value = F.mse_loss(functional_call(module, tensors, x[task]), y[task])
            if step < STEPS:
                slopes = torch.autograd.grad(value, list(now.values()), create_graph=True, materialize_grads=True)
                now = {name: old - RATE * slope for (name, old), slope in zip(now.items(), slopes, strict=True)}
        total = total + value / len(x)
    found = torch.autograd.grad(total, list(start.values()), materialize_grads=True)
    return dict(zip(start, found, strict=True))


@pytest.mark.parametrize("options", [{}, {"remat": True}, {"unroll": "vjp"}], ids=["python", "remat", "vjp"])
@pytest.mark.parametrize("how", ["vmap", "sum", "loop"])
def test_meta_gradients(how: Any, options: dict[str, Any], device: torch.device) -> None:
    """Every way gives the meta-gradients of the module by plain autograd, with batch norms and unused parameters."""
    torch.manual_seed(0)
    module = Convolutional().to(device, DOUBLE)
    x, y = torch.randn(2, 3, 3, 5, 5, dtype=DOUBLE).to(device), torch.randn(2, 3, 4, dtype=DOUBLE).to(device)
    p = bridge.from_module(module)
    adapt = pn.meta.inner_loop(loss, pn.optim.sgd(RATE), STEPS, **options)
    gradients = pn.meta.grad(lambda p, x, y: loss(adapt(p, x, y)[0], x, y), how)(p, x, y)
    found = dict(pn.tree.named_leaves(gradients))
    for name, expected in meta_gradients(module, x, y).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-10)
