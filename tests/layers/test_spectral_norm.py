"""Spectral normalisation: equal to torch's parametrization in training and evaluation, and pure."""

from typing import Any

import pytest
import torch
from _reference import numbers, same, weights_like
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bridge
import purenn as pn
from purenn import layers
from purenn.layers import SpectralNorm

DOUBLE = torch.float64

# Layer, the torch module of the same options, shape of an input.
CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (lambda k: layers.Linear.init(k, 4, 3, dtype=DOUBLE), lambda: nn.Linear(4, 3, dtype=DOUBLE), (2, 4)),
    "conv2d": (
        lambda k: layers.Conv2d.init(k, 4, 2, (3, 2), stride=2, groups=2, bias=False, dtype=DOUBLE),
        lambda: nn.Conv2d(4, 2, (3, 2), stride=2, groups=2, bias=False, dtype=DOUBLE),
        (2, 4, 5, 5),
    ),
    "conv_transpose1d": (
        lambda k: layers.ConvTranspose1d.init(k, 2, 3, 3, dtype=DOUBLE),
        lambda: nn.ConvTranspose1d(2, 3, 3, dtype=DOUBLE),
        (2, 2, 4),
    ),
}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def wrapped(case: str, device: torch.device, seed: int = 0, **options: Any) -> SpectralNorm:
    """A wrapped layer whose estimates are not good yet."""
    p = SpectralNorm.of(key(device, seed + 1), CASES[case][0](key(device, seed)), **options)
    assert p.u is not None
    assert p.v is not None
    u, v = (x + 0.3 * numbers(len(x), seed=seed, device=device) for x in (p.u, p.v))
    return pn.replace(p, u=u / u.norm(), v=v / v.norm())


def parametrized(case: str, p: SpectralNorm, device: torch.device, **options: Any) -> nn.Module:
    """torch's module with the values of a wrapped layer."""
    module = parametrizations.spectral_norm(CASES[case][1]().to(device), **options)
    name = "parametrizations.weight"
    state = {f"{name}.original": p.layer.weight, f"{name}.0._u": p.u, f"{name}.0._v": p.v}
    module.load_state_dict(state | ({} if p.bias is None else {"bias": p.bias}))
    return module


def gradients(y: Tensor, of: list[Tensor]) -> list[Tensor]:
    """Derivatives of a weighted sum of sines, and the derivatives of a weighted sum of these."""
    first = torch.autograd.grad((torch.sin(y) * weights_like(y)).sum(), of, create_graph=True)
    total = sum((g * weights_like(g)).sum() for g in first)
    return [*first, *torch.autograd.grad(total, of, allow_unused=True, materialize_grads=True)]  # type: ignore


@given(
    case=st.sampled_from(list(CASES)),
    n_power_iterations=st.integers(1, 3),
    eps=st.sampled_from([1e-12, 0.5]),
    dim=st.sampled_from([None, 0, 1]),
    train=st.booleans(),
    seed=st.integers(0, 9),
)
def test_equals_torch(case: str, train: bool, seed: int, device: torch.device, **options: Any) -> None:
    """Values, buffers after three steps, gradients and second derivatives are those of torch's parametrization."""
    p = wrapped(case, device, seed, **options)
    module = parametrized(case, p, device, **options).train(train)
    original = module.parametrizations.weight  # type: ignore[union-attr]
    assert p.dim == original[0].dim  # type: ignore[index, union-attr]
    p = pn.replace(p, layer=pn.tree.map(lambda leaf: leaf.detach().requires_grad_(), p.layer))
    x = numbers(*CASES[case][2], seed=seed, device=device).requires_grad_()
    for _ in range(3):
        theirs = module(x)
        ours, p = layers.spectral_norm(p, x, train=train)
        same(ours, theirs)
        same((p.u, p.v), (original[0]._u, original[0]._v))  # type: ignore[index, union-attr]
        same(
            gradients(ours, [x, *pn.tree.leaves(p.layer)]),
            gradients(theirs, [x, original.original, *([] if p.bias is None else [module.bias])]),
        )


def test_vectors_are_divided_by_their_length(device: torch.device) -> None:
    """A parameter with one dimension needs no estimates; its result is torch's."""
    p = SpectralNorm.of(key(device), layers.Linear.init(key(device), 4, 3, dtype=DOUBLE), "bias")
    module = nn.Linear(4, 3, dtype=DOUBLE, device=device)
    module.load_state_dict({"weight": p.layer.weight, "bias": p.layer.bias})
    parametrizations.spectral_norm(module, "bias")
    x = numbers(2, 4, device=device)
    y, new = p(x, train=True)
    same(y, module(x))
    assert (p.u, p.v, new.u, new.v) == (None, None, None, None)
    same(p.bias, p.layer.bias / p.layer.bias.norm())


def test_estimates_find_the_largest_singular_value(device: torch.device) -> None:
    """The first estimates are good already, training makes them exact, evaluation leaves them alone."""
    p = SpectralNorm.of(key(device), layers.Linear.init(key(device, 1), 4, 3, dtype=DOUBLE))
    x = numbers(2, 4, device=device)
    sigma = torch.linalg.matrix_norm(p.layer.weight, 2)
    same(p.weight, p.layer.weight / sigma, tolerance=1e-2)
    for _ in range(100):
        _, p = p(x, train=True)
    same(p.weight, p.layer.weight / sigma)
    y, new = p(x)
    assert new is p
    same(y, p.folded()(x))
    assert type(p.folded()) is layers.Linear


def test_is_read_like_the_layer(device: torch.device) -> None:
    """The functions of plain layers take the container, and use the estimates at hand."""
    for case, function in (
        ("linear", layers.linear),
        ("conv2d", layers.conv2d),
        ("conv_transpose1d", layers.conv_transpose1d),
    ):
        p, x = wrapped(case, device), numbers(*CASES[case][2], device=device)
        same(function(p, x), p(x)[0])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("case", ["linear", "conv2d"])
def test_transformations(case: str, train: bool, device: torch.device) -> None:
    """Wrapped layers keep the promises of the shared table, in training and out of it."""
    check_transformations(
        lambda seed: wrapped(case, device, seed),
        lambda p, x: layers.spectral_norm(p, x, train=train)[0],
        numbers(3, *CASES[case][2], device=device),
    )


def test_new_buffers_under_transformations(device: torch.device) -> None:
    """Under vmap each model has new estimates of its own, and a gradient gives them beside the gradient."""
    models = [wrapped("linear", device, seed) for seed in range(3)]
    x = numbers(2, 4, device=device)
    expected = [p(x, train=True)[1] for p in models]
    got = pn.vmap(lambda p: p(x, train=True)[1])(pn.tree.stack(models))
    assert pn.tree.allclose(got, pn.tree.stack(expected), atol=1e-12)

    def loss(p: SpectralNorm) -> tuple[Tensor, SpectralNorm]:
        y, new = p(x, train=True)
        return y.square().sum(), new

    gradient, new = pn.grad(loss, has_aux=True)(models[0])
    assert pn.tree.allclose(new, expected[0], atol=1e-12)
    assert gradient.u is pn.tree.HOLE
    jitted = pn.jit(lambda p, x: p(x, train=True), backend="eager")
    y, new = jitted(models[0], x)
    assert pn.tree.allclose(new, expected[0], atol=1e-12)
    same(y, models[0](x, train=True)[0])
    check_purity(layers.spectral_norm, models[0], x)


def test_through_the_bridge(device: torch.device) -> None:
    """As a module it follows the module's mode, keeps its estimates itself, and hooks fire on the layer inside."""
    p, x = wrapped("linear", device), numbers(2, 4, device=device)
    m = bridge.to_module(p, copy=True)
    assert sorted(m.state_dict()) == ["layer.bias", "layer.weight", "u", "v"]
    seen = []
    m.layer.register_forward_hook(lambda module, args, output: seen.append(output))  # type: ignore[union-attr]
    # Two passes before one backward, as in the loss of a discriminator.
    total = m(x).sum() - m(2 * x).square().sum()
    assert len(seen) == 2
    first, new = p(x, train=True)
    second, new = new(2 * x, train=True)
    same(total, first.sum() - second.square().sum())
    same((m.u, m.v), (new.u, new.v), tolerance=0)
    total.backward()
    assert m.layer.weight.grad is not None  # type: ignore[union-attr]
    same(m.eval()(x), new(x)[0])
    same((m.u, m.v), (new.u, new.v), tolerance=0)


def test_in_a_model(device: torch.device) -> None:
    """All layers of a model are wrapped by surgery, and a training step returns the model with all new estimates."""
    k1, k2, k3 = pn.random.split(key(device), 3)
    base = layers.Sequential.of(layers.Linear.init(k1, 4, 5), layers.Tanh(), layers.Linear.init(k2, 5, 3))
    keys = iter(pn.random.split(k3, 2))
    p = pn.tree.select(base).instances(layers.Linear).apply(lambda layer: SpectralNorm.of(next(keys), layer))
    assert pn.is_stateful(p)
    x = numbers(2, 4, device=device).float()
    _, new = p(x, train=True)
    for position in (0, 2):
        assert not torch.equal(new[position].v, p[position].v)
        assert new[position].layer.weight is p[position].layer.weight


def test_on_meta(device: torch.device) -> None:
    """On the meta device shapes are right and nothing is allocated."""
    p = SpectralNorm.of(key(device), layers.Linear.init(key(device), 10**6, 10**5, device="meta"))
    assert p.u is not None
    assert p.v is not None
    assert (p.u.is_meta, p.v.is_meta, len(p.u), len(p.v)) == (True, True, 10**5, 10**6)


def test_repr(device: torch.device) -> None:
    """What is normalised, and how, is printed above the layer."""
    assert repr(SpectralNorm.of(key(device), layers.Linear.init(key(device), 4, 3))) == (
        "SpectralNorm(name='weight', n_power_iterations=1, eps=1e-12, dim=0\n"
        "  (layer): Linear(in_features=4, out_features=3, bias=True)\n)"
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda key, layer: SpectralNorm.of(key, torch.relu),
            pn.errors.ContainerError,
            "SpectralNorm.of: expected a container with a function, such as Linear.init(...), got a "
            "builtin_function_or_method.",
        ),
        (
            lambda key, layer: SpectralNorm.of(key, layer, dim=2),
            pn.errors.ArgumentError,
            "SpectralNorm.of: dim must lie between 0 and 1 for a weight of shape [3, 2], got 2. Count from the front.",
        ),
        (
            lambda key, layer: SpectralNorm.of(key, layer, n_power_iterations=0),
            pn.errors.ArgumentError,
            "SpectralNorm.of: n_power_iterations must be at least 1, got 0.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str, device: torch.device) -> None:
    """What cannot be wrapped is refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call(key(device), layers.Linear.init(key(device), 2, 3))
    assert str(caught.value) == text
