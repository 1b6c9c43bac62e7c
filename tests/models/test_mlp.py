"""Multilayer perceptrons: published sizes, the same network in torch.nn, transformations."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from _reference import numbers, same
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.models import MLP, MLPBlock, mlp, mlp_block


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def reference(sizes: tuple[int, ...], batch_norm: bool) -> nn.Module:
    """The same network of torch.nn's modules, with the same names."""

    class Block(nn.Module):
        def __init__(self, n: int, m: int) -> None:
            super().__init__()
            self.linear = nn.Linear(n, m)
            self.norm = nn.BatchNorm1d(m) if batch_norm else None

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return (y if self.norm is None else self.norm(y)).relu()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            *hidden, _ = sizes
            self.blocks = nn.ModuleList(Block(n, m) for n, m in pairwise(hidden))
            self.head = nn.Linear(*sizes[-2:])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    return Network().double()


@pytest.mark.parametrize(
    ("hidden", "options", "number"),
    [
        ((500,), {}, 397_510),
        ((256,), {}, 203_530),
        ((512, 256, 128), {"dropout": 0.2, "batch_norm": True}, 569_226),
        ((256, 64), {}, 218_058),
        ((512, 256), {"batch_norm": True}, 537_354),
    ],
    ids=["row 30 FNN", "row 30 SimpleNet", "row 30 MLP", "row 31", "row 32"],
)
def test_row_30_parameter_counts(hidden: tuple[int, ...], options: dict[str, Any], number: int) -> None:
    """Rows 30 to 32: from 784 features to 10 there are as many parameters as published, on meta and on the CPU."""
    p = MLP.init(pn.random.key(0), 784, hidden, 10, **options, device="meta")
    assert all(leaf.is_meta for leaf in pn.tree.leaves(p))
    assert pn.tree.count(p) == number
    out = MLP.init(pn.random.key(0), 784, hidden, 10, **options)(torch.zeros(2, 784))
    assert (out[0] if options.get("batch_norm") else out).shape == (2, 10)


def test_row_31_modules_of_the_bridge(device: torch.device) -> None:
    """Row 31: named children, and all modules, of 784-256-64-10 are listed when a module carries it."""
    module = bridge.to_module(MLP.init(key(device), 784, (256, 64), 10))
    assert [name for name, _ in module.named_children()] == ["blocks", "head"]
    assert [name for name, _ in module.blocks.named_children()] == ["0", "1"]
    parts = [f"blocks.{i}{part}" for i in range(2) for part in ("", ".linear", ".dropout")]
    assert [name for name, _ in module.named_modules()] == ["", "blocks", *parts, "head"]
    assert repr(module.blocks[0].linear) == "Linear(in_features=784, out_features=256, bias=True)"


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_equals_modules(
    hidden: tuple[int, ...], batch_norm: bool, device: torch.device, check_equals_module: Callable[..., None]
) -> None:
    """Names, outputs, gradients and running averages are those of torch.nn's modules."""
    p = MLP.init(key(device), 6, hidden, 3, batch_norm=batch_norm, dtype=torch.float64)
    x = numbers(7, 6, device=device)
    check_equals_module(p, reference((6, *hidden, 3), batch_norm).to(device), x)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_promises(batch_norm: bool, device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise: purity, batching, derivatives, compilation, both carriers."""
    check_promises(
        lambda seed: MLP.init(key(device, seed), 4, (3, 3), 2, batch_norm=batch_norm, dtype=torch.float64),
        numbers(2, 3, 4, device=device),
    )


def test_dropout_by_key(device: torch.device) -> None:
    """A key drops hidden features of every block, the same ones each time; without one there is no dropout."""
    p = MLP.init(key(device), 4, (50, 50), 2, dropout=0.5)
    plain = MLP(tuple(pn.replace(block, dropout=pn.layers.Dropout(0.0)) for block in p.blocks), p.head)
    x = torch.rand(3, 4, device=device)
    assert torch.equal(mlp(p, x), mlp(plain, x))
    assert torch.equal(mlp(p, x, key=key(device)), mlp(p, x, key=key(device)))
    assert not torch.equal(mlp(p, x, key=key(device)), mlp(p, x, key=key(device, 1)))
    hidden = mlp_block(p.blocks[0], x, key=key(device))
    assert ((hidden == 0) | torch.isclose(hidden, 2 * mlp_block(p.blocks[0], x))).all()


def test_what_it_returns_depends_on_structure(device: torch.device) -> None:
    """Without batch normalisation an output alone, any batch dimensions; with it the new container as well."""
    p = MLP.init(key(device), 4, (3,), 2)
    x = torch.rand(2, 5, 4, device=device)
    assert not pn.is_stateful(p)
    assert mlp(p, x).shape == (2, 5, 2)
    same(mlp(p, x)[1, 2], mlp(p, x[1, 2]), tolerance=1e-6)
    p = MLP.init(key(device), 4, (3,), 2, batch_norm=True)
    assert pn.is_stateful(p)
    y, new = mlp(p, x[0])
    assert y.shape == (5, 2)
    assert pn.tree.equal(new, p)
    _, new = mlp(p, x[0], train=True)
    assert new.blocks[0].norm.num_batches_tracked == 1
    assert p.blocks[0].norm.num_batches_tracked == 0


def test_row_32_learns_real_digits(device: torch.device) -> None:
    """Row 32: 784-512-256-10, trained with Adam 1e-3 for three epochs, reads at least 95% of held-out digits."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32, device=device).unsqueeze(1)
    x = torch.nn.functional.interpolate(images, size=(28, 28)).flatten(1)
    labels = torch.tensor(digits.target, device=device)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(device)
    held_out, rest = order[:360], order[360:]
    p = MLP.init(key(device), 784, (512, 256), 10, batch_norm=True)
    optimizer = pn.optim.adam(1e-3)
    state = optimizer.init(p)

    def loss(p: MLP, x: Tensor, labels: Tensor) -> tuple[Tensor, MLP]:
        y, new = mlp(p, x, train=True)
        return pn.losses.cross_entropy(y, labels), new

    for _ in range(3):
        for batch in rest.split(64):
            grads, p = pn.grad(loss, has_aux=True)(p, x[batch], labels[batch])
            updates, state = optimizer.update(grads, state, p)
            p = pn.optim.apply_updates(p, updates)
    predicted = mlp(p, x[held_out])[0].argmax(-1)
    assert (predicted == labels[held_out]).float().mean() >= 0.95


def test_errors(device: torch.device) -> None:
    """Wrong rates and inputs are refused by the part that they concern."""
    with pytest.raises(ArgumentError) as error:
        MLPBlock.init(key(device), 4, 3, dropout=1.5)
    assert str(error.value) == "Dropout: p is the probability of a zero and must be from 0 to 1, got 1.5."
    with pytest.raises(ShapeError) as error:
        mlp(MLP.init(key(device), 4, (3,), 2), torch.zeros(2, 2, 2, device=device))
    assert str(error.value) == (
        "linear: the last dimension of x must be in_features=4, got shape [2, 2, 2]. Flatten or transpose x so that "
        "its features come last."
    )
