"""`sgd` and `adam` against torch.optim, and as pure functions."""

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError
from purenn.layers import Linear, linear
from purenn.optim import adam, apply_updates, sgd

CASES = {
    "sgd": (lambda: sgd(0.01), lambda ps: torch.optim.SGD(ps, lr=0.01)),
    "momentum": (lambda: sgd(0.01, momentum=0.9), lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9)),
    "nesterov": (
        lambda: sgd(0.01, momentum=0.9, nesterov=True),
        lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9, nesterov=True),
    ),
    "adam": (lambda: adam(0.05), lambda ps: torch.optim.Adam(ps, lr=0.05)),
    "adam with options": (
        lambda: adam(0.05, betas=(0.8, 0.99), eps=1e-3),
        lambda ps: torch.optim.Adam(ps, lr=0.05, betas=(0.8, 0.99), eps=1e-3),
    ),
}


def model(device: torch.device) -> Linear:
    return pn.tree.to(Linear.init(pn.random.key(0, device), 3, 2), torch.float64)


def loss(p: Linear, x: Tensor) -> Tensor:
    return linear(p, x).sin().square().sum()


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name: str, device: torch.device) -> None:
    """Fifty steps give torch.optim's parameters."""
    ours, theirs = CASES[name]
    p = model(device)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    leaves = [leaf.clone().requires_grad_() for leaf in pn.tree.leaves(p)]
    reference = theirs(leaves)
    optimizer = ours()
    state = optimizer.init(p)
    for _ in range(50):
        updates, state = optimizer.update(pn.grad(loss)(p, x), state, p)
        p = apply_updates(p, updates)
        reference.zero_grad()
        loss(Linear(*leaves), x).backward()
        reference.step()
    for mine, right in zip(pn.tree.leaves(p), leaves, strict=True):
        torch.testing.assert_close(mine, right.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_pure_and_batched(name: str, device: torch.device) -> None:
    """The same arguments give the same answer, frozen leaves stay, and an ensemble trains under vmap."""
    optimizer = CASES[name][0]()
    p = pn.tree.freeze(model(device), "bias")
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)

    def step(p: Linear, state: object, x: Tensor) -> tuple:
        updates, state = optimizer.update(pn.grad(loss)(p, x), state, p)
        return apply_updates(p, updates), state

    state = optimizer.init(p)
    before = pn.tree.map(torch.clone, (p, state))
    once, again = step(p, state, x), step(p, state, x)
    assert pn.tree.equal(once, again)
    assert pn.tree.equal((p, state), before)
    assert once[0].bias is p.bias
    pair, states = pn.tree.stack([p, once[0]]), pn.tree.stack([state, once[1]])
    batched = pn.vmap(step, (0, 0, None))(pair, states, x)
    assert pn.tree.allclose(pn.tree.unstack(batched)[1], step(*once, x), rtol=0, atol=1e-12)


def test_learning_rate_can_be_differentiated(device: torch.device) -> None:
    """A learning rate that is a tensor has a gradient through the step."""
    p = model(device)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)

    def after(rate: Tensor) -> Tensor:
        optimizer = adam(rate)
        updates, _ = optimizer.update(pn.grad(loss)(p, x), optimizer.init(p), p)
        return loss(apply_updates(p, updates), x)

    rate = torch.tensor(0.01, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(after, rate)


def test_errors() -> None:
    """Settings that make no sense are refused."""
    cases = {
        "sgd: momentum must not be negative, got -1.": lambda: sgd(0.1, momentum=-1),
        "sgd: nesterov=True needs a momentum above 0.": lambda: sgd(0.1, nesterov=True),
        "adam: both betas must be at least 0 and below 1, got (0.9, 1.0).": lambda: adam(0.1, betas=(0.9, 1.0)),
        "adam: eps must not be negative, got -1.": lambda: adam(0.1, eps=-1),
    }
    for text, call in cases.items():
        with pytest.raises(ArgumentError) as error:
            call()
        assert str(error.value) == text
