"""Writes in place by an opaque container's code: values are torch's, and nothing of the caller's changes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bridge
import purenn as pn
from purenn.errors import GradientError, MutationError

DOUBLE = torch.float64


class Writing(nn.Module):
    """Writes into views of what it makes, of its buffer and of its parameter."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.weight = way, nn.Parameter(torch.arange(1.0, 4.0, dtype=DOUBLE))
        self.register_buffer("sums", torch.zeros(3, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        y, part = torch.zeros_like(x), self.weight[:2]
        if self.way == "add":
            y[:2].add_(part)
        elif self.way == "copy":
            y[:2].copy_(part)
        elif self.way == "items":
            y[1:] += part
        elif self.way == "strided":
            y.view(3, 1)[::2, 0].mul_(0).add_(part)
        elif self.way == "scattered":
            y.index_add_(0, torch.tensor([2, 2], device=x.device), part)
        elif self.way == "data":
            self.sums.data.mul_(0.5).add_(self.weight.detach())
            y = self.sums * self.weight
        elif self.way == "buffer":
            self.sums[:2].add_(part.detach())
            y = self.sums * self.weight
        elif self.way == "parameter":
            with torch.no_grad():
                self.weight[:2].mul_(2)
            y = self.weight * self.weight
        return y * x


WAYS = ("add", "copy", "items", "strided", "scattered", "data", "buffer", "parameter")


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_views(way: str, contiguous: bool, device: torch.device) -> None:
    """What is written into a view shows in the whole, batched or not, and never in the caller's tensors."""
    module, x = Writing(way).to(device), torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE, device=device)
    p = bridge.from_module(module)
    p = pn.tree.contiguous(p) if contiguous else p
    models = pn.tree.stack([p, pn.tree.map(lambda leaf: leaf * 3, p)])
    before = pn.tree.map(torch.clone, (p, models, x))

    def value(p: Any, x: Tensor) -> Tensor:
        return p(x)[0] if pn.is_stateful(p) else p(x)

    def expected(factor: float) -> tuple[Tensor, Tensor]:
        reference = copy.deepcopy(module)
        with torch.no_grad():
            reference.weight.mul_(factor)
        y = reference(x)
        return y.detach(), torch.autograd.grad(y.sum(), reference.weight)[0]

    for factor, y, g in zip(
        (1.0, 3.0),
        pn.vmap(value, (0, None))(models, x),
        pn.vmap(pn.grad(lambda p: value(p, x).sum()))(models).weight,
        strict=True,
    ):
        torch.testing.assert_close(y, expected(factor)[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(g, expected(factor)[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(value(p, x), expected(1.0)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(pn.grad(lambda p: value(p, x).sum())(p).weight, expected(1.0)[1], rtol=0, atol=1e-12)
    assert pn.tree.equal((p, models, x), before)


AVERAGES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "in place": lambda sums, x: sums.data.mul_(0.5).add_(x, alpha=0.1),
    "copied": lambda sums, x: sums.data.copy_(sums * 2 + x),
    "items": lambda sums, x: sums.data[1:].add_(x[1:]),
    "of a view": lambda sums, x: sums[:2].data.mul_(3),
    "out": lambda sums, x: torch.mul(sums, x, out=sums.data),
    "together": lambda sums, x: torch._foreach_add_([sums.data], 2.0),
    "NumPy": lambda sums, x: sums.numpy().fill(4),
}


class Averaging(nn.Module):
    """Updates its buffers past autograd, in the ways that code for codebooks and queues does."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.weight = way, nn.Parameter(torch.ones(3, dtype=DOUBLE))
        self.register_buffer("sums", torch.arange(1.0, 4.0, dtype=DOUBLE))
        self.register_buffer("other", torch.ones(3, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        AVERAGES[self.way](self.sums, x.detach())
        return x * self.weight.data * self.sums.data + self.other.data


@pytest.mark.parametrize("way", AVERAGES)
def test_writes_past_autograd(way: str, device: torch.device) -> None:
    """What is written by `.data`, and by whatever shares the memory, is in the new container, step by step."""
    if way == "NumPy" and device.type != "cpu":
        pytest.skip("NumPy has no arrays there")
    module, x = Averaging(way).to(device), torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE, device=device)
    p = bridge.from_module(module, stateful=True)
    before = pn.tree.map(torch.clone, p)
    q, reference = p, copy.deepcopy(module)
    for _ in range(2):
        y, q = q(x, train=True)
        assert torch.equal(y, reference(x).detach())
        assert torch.equal(q.sums, reference.sums)
    assert pn.tree.equal(p, before)
    if way != "NumPy":
        _, batched = pn.vmap(lambda p, x: p(x, train=True), (None, 0))(p, torch.stack([x, 2 * x]))
        one = [p(each, train=True)[1].sums for each in (x, 2 * x)]
        torch.testing.assert_close(batched.sums, torch.stack(one), rtol=0, atol=1e-12)


class Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        seen = y[:2]
        y.add_(self.weight)
        return seen * x[:2]


def test_a_view_that_cannot_follow(device: torch.device) -> None:
    """Where a view would go on showing the old values, the write is refused."""
    p, x = bridge.from_module(Looking().to(device)), torch.ones(3, dtype=DOUBLE, device=device)
    assert torch.equal(p(x), x[:2])
    with pytest.raises(MutationError, match="in place"):
        pn.vmap(lambda p: p(x))(pn.tree.stack([p, p]))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.part, self.reentrant = nn.Linear(3, 3, dtype=DOUBLE), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x.tanh(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_within(reentrant: bool, device: torch.device) -> None:
    """Parts whose activations the module would compute again have their gradients, in and out of vmap."""
    torch.manual_seed(0)
    module, x = Checkpointed(reentrant).to(device), torch.ones(2, 3, dtype=DOUBLE, device=device, requires_grad=True)
    p = bridge.from_module(module)
    module(x).square().sum().backward()

    def loss(p: Any, x: Tensor) -> Tensor:
        return p(x).square().sum()

    fixed = x.detach()
    torch.testing.assert_close(pn.grad(loss)(p, fixed).part.weight, module.part.weight.grad, rtol=0, atol=1e-12)
    rows = pn.vmap(pn.grad(loss), (None, 0))(p, fixed[:, None]).part.weight
    torch.testing.assert_close(rows.sum(0), module.part.weight.grad, rtol=0, atol=1e-12)


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 1, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(self.part(x).square().sum(), x, create_graph=True)[0]


def test_gradients_by_autograd_within(device: torch.device) -> None:
    """A module that differentiates itself by autograd runs and is differentiated; in vmap the error names it."""
    module, x = nn.Sequential(Energy()).to(device), torch.ones(2, 3, dtype=DOUBLE, device=device)
    p = bridge.from_module(module)
    torch.testing.assert_close(p(x).detach(), module(x).detach(), rtol=0, atol=1e-12)
    module(x).square().sum().backward()
    found = pn.grad(lambda p: p(x).square().sum())(p)
    torch.testing.assert_close(getattr(found, "0").part.weight, module[0].part.weight.grad, rtol=0, atol=1e-12)
    with pytest.raises(GradientError) as error:
        pn.vmap(lambda x: p(x))(x)
    assert str(error.value) == (
        "'0' (Energy) differentiates by requires_grad_ and autograd, which torch's transformations cannot see. Within "
        "the module, use torch.func.grad or torch.func.vjp."
    )


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.eye(3, dtype=DOUBLE).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:2].copy_(x[:2])
        return y


def test_beside_a_tensor_without_memory(device: torch.device) -> None:
    """Where a view is written into, a sparse buffer, which has no memory of its own, is no obstacle."""
    p, x = bridge.from_module(Sparse().to(device)), torch.arange(6.0, dtype=DOUBLE, device=device).view(2, 3)
    expected = x * torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE, device=device)
    torch.testing.assert_close(pn.vmap(lambda x: p(x))(x), expected, rtol=0, atol=0)
