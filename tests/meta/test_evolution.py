"""Evolution strategies: unbiased for the gradient of the smoothed function, alone and persistent."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, GradientError
from purenn.meta import evolution_gradient, persistent_evolution

DOUBLE = torch.float64


def within_five_errors(samples: Tensor, right: Tensor) -> bool:
    """Whether the mean of samples [number, ...] is that of a distribution with some mean, as far as one can tell."""
    return bool(((samples.mean(0) - right).abs() < 5 * samples.std(0) / math.sqrt(len(samples))).all())


def quadratic(p: dict[str, Tensor]) -> Tensor:
    """A function whose smoothed form has the same gradient."""
    return (p["a"] * torch.arange(1.0, 4.0, dtype=DOUBLE, device=p["a"].device) + p["b"]).square().sum()


def point(device: torch.device) -> dict[str, Tensor]:
    return {
        "a": torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE, device=device),
        "b": torch.tensor(0.3, dtype=DOUBLE).to(device),
    }


def keys(device: torch.device, number: int) -> Tensor:
    return pn.random.split(pn.random.key(0, device), number)


def test_unbiased_on_quadratics(device: torch.device) -> None:
    """The mean of many estimates is the gradient, of every leaf, and that of the values the smoothed value."""
    p, std = point(device), 0.3
    estimate = evolution_gradient(quadratic, std=std, pairs=20)
    values, gradients = pn.vmap(estimate, (0, None))(keys(device, 2000), p)
    right = pn.grad(quadratic)(p)
    for name in p:
        assert within_five_errors(gradients[name], right[name]), name
    assert not within_five_errors(gradients["a"], 1.2 * right["a"])
    assert within_five_errors(values, quadratic(p) + std**2 * (1 + 4 + 9 + 3))


@pytest.mark.parametrize(
    ("fn", "smoothed"),
    [
        (lambda w: w.cos(), lambda w, std: w.cos() * math.exp(-(std**2) / 2)),
        (lambda w: (w > 0).double(), lambda w, std: 0.5 + 0.5 * torch.erf(w / std / math.sqrt(2))),
    ],
    ids=["cosine", "step"],
)
def test_gradient_of_the_smoothed_function(device: torch.device, fn: Any, smoothed: Any) -> None:
    """Curved functions and those without a derivative have the gradient of their convolution with the noise."""
    w, std = torch.tensor(0.4, dtype=DOUBLE, device=device), 0.6
    values, gradients = pn.vmap(evolution_gradient(fn, std=std, pairs=20), (0, None))(keys(device, 500), w)
    assert within_five_errors(values, smoothed(w, std))
    assert within_five_errors(gradients, pn.grad(lambda w: smoothed(w, std))(w))


def test_the_same_in_chunks_loops_and_compiled(device: torch.device) -> None:
    """A key gives one answer, however it is computed; fresh noise for every leaf and pair."""
    p, key = point(device), pn.random.key(7, device)
    right = evolution_gradient(quadratic, std=0.1, pairs=6)(key, p)
    for options in ({"chunk_size": 4}, {"vectorized": False}, {"vectorized": False, "chunk_size": 1}):
        options: Any
        assert pn.tree.allclose(evolution_gradient(quadratic, std=0.1, pairs=6, **options)(key, p), right, rtol=1e-12)
    jitted = pn.jit(evolution_gradient(quadratic, std=0.1, pairs=6), backend="eager")
    assert pn.tree.allclose(jitted(key, p), right, rtol=1e-12)
    std = torch.tensor(0.1, dtype=DOUBLE, device=device)
    assert pn.tree.allclose(evolution_gradient(quadratic, std=std, pairs=6)(key, p), right, rtol=1e-12)
    same = {"a": p["b"], "b": p["b"]}
    linear = evolution_gradient(lambda p: p["a"] + p["b"], std=1.0, pairs=1)(key, same)[1]
    assert linear["a"] != linear["b"]
    assert not torch.equal(right[1]["a"], evolution_gradient(quadratic, std=0.1, pairs=6)(key + 1, p)[1]["a"])


def test_only_what_is_trained(device: torch.device) -> None:
    """Buffers, integers and frozen leaves stay where they are and have holes in the gradient; no graph is recorded."""

    @pn.container
    class Model:
        w: Tensor
        frozen: Tensor
        number: Tensor
        scale: Tensor = pn.buffer()

    ones = torch.ones(2, device=device)
    p = pn.tree.freeze(Model(ones.clone().requires_grad_(), ones, torch.tensor(3, device=device), 2 * ones), "frozen")

    def fn(p: Model, factor: float) -> Tensor:
        assert torch.equal(p.frozen, ones)
        assert int(p.number) == 3
        return (p.w * p.scale).sum() * factor

    value, gradient = evolution_gradient(fn, std=0.1, vectorized=False)(pn.random.key(0, device), p, 1.5)
    assert gradient.frozen is gradient.scale is gradient.number is pn.tree.HOLE
    assert not value.requires_grad
    assert not gradient.w.requires_grad
    assert gradient.w.dtype == torch.float32


def inner_step(w: Tensor, p: dict[str, Tensor]) -> Tensor:
    return 0.9 * w + p["drift"] * torch.tensor([1.0, 2.0], dtype=DOUBLE, device=w.device) + p["rate"]


def piece(p: dict[str, Tensor], w: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two steps of a linear inner problem, with the squares on the way as the loss."""
    one = inner_step(w, p)
    two = inner_step(one, p)
    return weight * (one.square().sum() + two.square().sum()), two


def test_persistent_estimates_add_up_to_the_whole_gradient(device: torch.device) -> None:
    """Over all truncations they are unbiased for the whole; truncated estimates are not."""
    p = {"drift": torch.tensor(0.3, dtype=DOUBLE, device=device), "rate": torch.tensor(-0.1, dtype=DOUBLE).to(device)}
    start = torch.tensor([1.0, -1.0], dtype=DOUBLE, device=device)

    def whole(p: dict[str, Tensor]) -> Tensor:
        total, w = torch.zeros((), dtype=DOUBLE, device=device), start
        for _ in range(3):
            loss, w = piece(p, w)
            total = total + loss
        return total

    pes = persistent_evolution(piece, std=0.2, pairs=20)

    def run(key: Tensor, persistent: bool) -> tuple[Tensor, dict[str, Tensor]]:
        state = pes.init(p, start)
        value, total = torch.zeros((), dtype=DOUBLE, device=device), pn.tree.map(torch.zeros_like, p)
        for part in pn.random.split(key, 3).unbind(0):
            if not persistent:
                state = pn.replace(state, shift=pn.tree.map(torch.zeros_like, state.shift))
            loss, gradient, state = pes.estimate(part, p, state)
            value, total = value + loss, pn.tree.map(torch.add, total, gradient)
        return value, total

    right = pn.grad(whole)(p)
    run_many: Callable[..., Any] = pn.vmap(run, (0, None))
    _, gradients = run_many(keys(device, 300), True)
    _, truncated = run_many(keys(device, 300), False)
    for name in p:
        assert within_five_errors(gradients[name], right[name]), name
        assert not within_five_errors(truncated[name], right[name]), name


def test_persistent_state(device: torch.device) -> None:
    """The state is stacked, carries inner state and noise on, and the first estimate is the ordinary one."""
    p = {"drift": torch.tensor(0.3, device=device), "rate": torch.tensor(-0.1, device=device)}
    p = pn.tree.to(p, DOUBLE)
    start, key = torch.tensor([1.0, -1.0], dtype=DOUBLE, device=device), pn.random.key(3, device)
    pes = persistent_evolution(piece, std=0.2, pairs=5)
    state = pes.init(p, start)
    assert state.inner.shape == (5, 2, 2)
    assert pn.tree.equal(state.shift, pn.tree.map(lambda w: w.new_zeros(5), p))
    value, gradient, state = pes.estimate(key, p, state, 2.0)
    right = evolution_gradient(lambda p: piece(p, start, 2.0)[0], std=0.2, pairs=5)(key, p)
    assert pn.tree.allclose((value, gradient), right, rtol=1e-12)
    assert not torch.equal(state.inner[:, 0], state.inner[:, 1])
    after = pes.estimate(key, p, state, 2.0)[2]
    assert pn.tree.allclose(after.shift, pn.tree.map(lambda x: 2 * x, state.shift), rtol=1e-12)
    chunked = persistent_evolution(piece, std=0.2, pairs=5, chunk_size=2)
    assert pn.tree.allclose(chunked.estimate(key, p, state, 2.0), pes.estimate(key, p, state, 2.0), rtol=1e-12)


def test_errors(device: torch.device) -> None:
    """Wrong options and parameters without anything to move are named."""
    for make, name in ((evolution_gradient, "evolution_gradient"), (persistent_evolution, "persistent_evolution")):
        with pytest.raises(ArgumentError) as error:
            make(quadratic, std=0)
        assert str(error.value) == f"{name}: std must be positive, got 0."
        with pytest.raises(ArgumentError) as error:
            make(quadratic, std=1, pairs=0)
        assert str(error.value) == f"{name}: pairs must be at least 1, got 0."
    key = pn.random.key(0, device)
    with pytest.raises(GradientError) as error:
        evolution_gradient(quadratic, std=1.0)(key, {"a": torch.tensor(1, device=device)})
    assert str(error.value) == (
        "evolution_gradient: the parameters have nothing to differentiate: no floating leaf that is trained."
    )
    with pytest.raises(GradientError) as error:
        persistent_evolution(piece, std=1.0).init({"z": torch.tensor(1j, device=device)}, ())
    assert str(error.value) == "persistent_evolution: 'z' is c64[], but the noise is real."
    with pytest.raises(GradientError) as error:
        evolution_gradient(lambda p: p["a"], std=1.0)(key, {"a": torch.ones(2, device=device)})
    assert str(error.value) == (
        "evolution_gradient: the function must return a scalar tensor, got f32[2]. Reduce it with .mean() or .sum(), "
        "or use pn.jacrev for the derivatives of every element."
    )
