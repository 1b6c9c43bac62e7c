"""Learned optimisers: containers in the shape of `pn.optim`, meta-trained by gradients and by evolution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import meta
from purenn.errors import ArgumentError

DOUBLE = torch.float64
MAKE: dict[str, tuple[Any, Callable[[Any], pn.optim.GradientTransformation]]] = {
    "mlp": (meta.MLPOptimizer, meta.mlp_optimizer),
    "lstm": (meta.LSTMOptimizer, meta.lstm_optimizer),
}


def learned(name: str, device: torch.device, **options: Any) -> tuple[Any, Callable[[Any], Any]]:
    container, function = MAKE[name]
    return container.init(pn.random.key(0, device), hidden=6, **options), function


def task(key: Tensor) -> tuple[Tensor, Tensor]:
    """Curvatures and the minimum of a quadratic in five dimensions."""
    one, two = pn.random.split(key)
    return pn.random.uniform(one, (5,), low=0.2, high=2.0), pn.random.normal(two, (5,))


def quadratic(w: dict[str, Tensor], curvature: Tensor, minimum: Tensor) -> Tensor:
    return (curvature * (w["w"] - minimum).square()).sum() / 2


def unrolled(optimizer: pn.optim.GradientTransformation, key: Tensor, steps: int = 8) -> Tensor:
    """The mean of the losses on the way, in proportion to the first one."""
    curvature, minimum = task(key)
    w = {"w": torch.zeros_like(minimum)}
    first, state, total = quadratic(w, curvature, minimum), optimizer.init(w), torch.zeros_like(minimum[0])
    for _ in range(steps):
        w, state = optimizer.step(w, pn.grad(quadratic)(w, curvature, minimum), state)
        total = total + quadratic(w, curvature, minimum)
    return total / first / steps


def test_shapes_of_any_tree(device: torch.device) -> None:
    """Updates look like the gradients and the state follows the leaves: scalars, matrices, holes, other dtypes."""

    @pn.container
    class Weights:
        scalar: Tensor
        matrix: Tensor
        double: Tensor
        buffer: Tensor = pn.buffer()

    ones = torch.ones(2, 3, device=device)
    w = Weights(ones[0, 0], ones, ones.double(), ones)
    grads = pn.grad(lambda w: w.scalar.square() + (w.matrix * w.double).sum())(w)
    for name in MAKE:
        p, make = learned(name, device)
        optimizer = make(p)
        state = optimizer.init(w)
        updates, new = optimizer.update(grads, state, w)
        assert updates.buffer is pn.tree.HOLE
        for update, leaf in zip(pn.tree.leaves(updates), pn.tree.leaves(pn.tree.partition(w)[0]), strict=True):
            assert (update.shape, update.dtype) == (leaf.shape, leaf.dtype)
        assert pn.tree.equal(pn.tree.map(torch.zeros_like, new), pn.tree.map(torch.zeros_like, state))
        assert int(new.count) == 1
        assert pn.tree.allclose(optimizer.step(w, grads, state)[0], pn.optim.apply_updates(w, updates), rtol=0)
        assert pn.tree.equal(optimizer.update(grads, state, w), (updates, new))


@pytest.mark.parametrize("name", MAKE)
def test_elements_are_treated_alike(device: torch.device, name: str) -> None:
    """The network does not know where in a leaf an element is."""
    p, make = learned(name, device)
    w, order = pn.random.normal(pn.random.key(1, device), (7,)), torch.tensor([3, 1, 0, 6, 5, 2, 4], device=device)
    optimizer, g = make(p), w.cos()
    update, state = optimizer.update(g, optimizer.init(w), w)
    update, _ = optimizer.update(g.sin(), state, w)
    permuted, state = optimizer.update(g[order], optimizer.init(w[order]), w[order])
    permuted, _ = optimizer.update(g.sin()[order], state, w[order])
    assert torch.allclose(permuted, update[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_meta_gradient(device: torch.device, name: str) -> None:
    """The gradient through the steps is that of finite differences, and the same under vmap and jit."""
    p, make = learned(name, device, dtype=DOUBLE, depth=1)
    w = torch.tensor([0.3, -0.2, 0.5], dtype=DOUBLE, device=device)

    def loss(p: Any, w: Tensor) -> Tensor:
        optimizer = make(p)
        state = optimizer.init(w)
        for _ in range(2):
            w, state = optimizer.step(w, pn.grad(lambda w: w.sin().square().sum())(w), state)
        return w.square().sum()

    pn.check_grads(lambda p: loss(p, w), (p,))
    one = pn.grad(loss)(p, w)
    many = pn.vmap(pn.grad(loss), (None, 0))(p, torch.stack([w, 2 * w]))
    assert pn.tree.allclose(pn.tree.unstack(many)[0], one, rtol=1e-9, atol=1e-12)
    assert pn.tree.allclose(pn.jit(pn.grad(loss), backend="eager")(p, w), one, rtol=1e-9, atol=1e-12)


def trained(p: Any, gradient: Callable[[Tensor, Any], Any], steps: int, rate: float) -> Any:
    """Meta-training with Adam."""
    outer = pn.optim.adam(rate)
    state = outer.init(p)
    for key in pn.random.split(pn.random.key(1, pn.tree.device(p)), steps).unbind(0):
        p, state = outer.step(p, gradient(key, p), state)
    return p


def held_out(p: Any, make: Callable[[Any], Any], device: torch.device) -> float:
    """The mean loss on quadratics that meta-training has not seen."""
    keys = pn.random.split(pn.random.key(99, device), 64)
    return float(pn.vmap(lambda key: unrolled(make(p), key))(keys).mean())


@pytest.mark.parametrize("name", MAKE)
def test_meta_training_by_gradients(device: torch.device, name: str) -> None:
    """Meta-training through the unrolled steps helps on held-out quadratics."""
    p, make = learned(name, device, step=0.3)

    def loss(p: Any, key: Tensor) -> Tensor:
        return pn.vmap(lambda key: unrolled(make(p), key))(pn.random.split(key, 16)).mean()

    before = held_out(p, make, device)
    after = held_out(trained(p, lambda key, p: pn.grad(loss)(p, key), 60, 0.02), make, device)
    assert after < 0.3 * before


def test_meta_training_by_evolution(device: torch.device) -> None:
    """Meta-training without derivatives, of whole and of truncated inner problems, helps on held-out quadratics."""
    p, make = learned("mlp", device, step=0.3)

    def loss(p: Any, key: Tensor) -> Tensor:
        return pn.vmap(lambda key: unrolled(make(p), key))(pn.random.split(key, 4)).mean()

    estimate = meta.evolution_gradient(loss, std=0.05, pairs=24)
    before = held_out(p, make, device)
    after = held_out(trained(p, lambda key, p: estimate(key, p, key)[1], 40, 0.02), make, device)
    assert after < 0.6 * before


def test_meta_training_by_persistent_evolution(device: torch.device) -> None:
    """Meta-training on pieces of the inner problem, with updates in between, helps on held-out quadratics."""
    p, make = learned("mlp", device, step=0.3)

    def piece(p: Any, inner: Any) -> tuple[Tensor, Any]:
        optimizer, (w, state, curvature, minimum) = make(p), inner
        total = torch.zeros((), device=device)
        for _ in range(4):
            w, state = optimizer.step(w, pn.grad(quadratic)(w, curvature, minimum), state)
            total = total + quadratic(w, curvature, minimum)
        return total, (w, state, curvature, minimum)

    pes, outer = meta.persistent_evolution(piece, std=0.05, pairs=48), pn.optim.adam(0.02)
    before, state = held_out(p, make, device), outer.init(p)
    for key in pn.random.split(pn.random.key(1, device), 25).unbind(0):
        one, two, three = pn.random.split(key, 3).unbind(0)
        curvature, minimum = task(one)
        w = {"w": torch.zeros_like(minimum)}
        persistent = pes.init(p, (w, make(p).init(w), curvature, minimum))
        for part in (two, three):
            _, gradient, persistent = pes.estimate(part, p, persistent)
            p, state = outer.step(p, gradient, state)
    after = held_out(p, make, device)
    assert after < 0.7 * before


def test_errors(device: torch.device) -> None:
    """Networks without a layer, complex parameters and states of something else are named."""
    with pytest.raises(ArgumentError) as error:
        meta.MLPOptimizer.init(pn.random.key(0), hidden=0)
    assert str(error.value) == "MLPOptimizer: hidden and depth must be at least 1, got 0 and 2."
    with pytest.raises(ArgumentError) as error:
        meta.LSTMOptimizer.init(pn.random.key(0), depth=0)
    assert str(error.value) == "LSTMOptimizer: hidden and depth must be at least 1, got 20 and 0."
    for name in MAKE:
        p, make = learned(name, device)
        optimizer, w = make(p), torch.ones(2, device=device)
        with pytest.raises(ArgumentError) as error:
            optimizer.update(w, pn.optim.sgd(0.1).init(w), w)
        assert str(error.value).startswith(f"{name}_optimizer: the state must be the ")
        with pytest.raises(ArgumentError):
            optimizer.init(torch.ones(2, dtype=torch.complex64, device=device))
