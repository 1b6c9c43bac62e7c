"""Dropout: the identity without a key, the right zeros with one, and mean and variance where they are promised."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _transformations import check_purity
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn
from purenn import layers

ALPHA = 1.6732632423543772 * 1.0507009873554805
FORMS: dict[str, tuple[type, Callable[..., Tensor], tuple[int, ...]]] = {
    "Dropout": (layers.Dropout, layers.dropout, (4, 5, 3)),
    "Dropout1d": (layers.Dropout1d, layers.dropout1d, (4, 5, 3)),
    "Dropout2d": (layers.Dropout2d, layers.dropout2d, (4, 5, 3, 2)),
    "Dropout3d": (layers.Dropout3d, layers.dropout3d, (4, 5, 2, 2, 2)),
    "AlphaDropout": (layers.AlphaDropout, layers.alpha_dropout, (4, 5, 3)),
    "FeatureAlphaDropout": (layers.FeatureAlphaDropout, layers.feature_alpha_dropout, (4, 5, 3, 2)),
}
DIMENSIONS = {"Dropout1d": 1, "Dropout2d": 2, "Dropout3d": 3, "FeatureAlphaDropout": 2}
RATE = st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0])


def ones(*shape: int, device: torch.device) -> Tensor:
    """Ones in float64."""
    return torch.ones(shape, dtype=torch.float64, device=device)


def keys(n: int, device: torch.device) -> Tensor:
    """Several keys on the device."""
    return pn.random.split(pn.random.key(5, device=device), n)


@pytest.mark.parametrize("name", FORMS)
@given(rate=RATE)
def test_identity_without_a_key(name: str, rate: float, device: torch.device) -> None:
    """Without a key the input itself comes back, whatever the rate."""
    make, function, shape = FORMS[name]
    x = ones(*shape, device=device)
    assert function(make(rate), x) is x


@pytest.mark.parametrize("name", FORMS)
def test_rates_of_zero_and_one_are_exact(name: str, device: torch.device) -> None:
    """Rate 0 returns the input; rate 1 returns zeros, with gradient 0, even for infinite inputs."""
    make, function, shape = FORMS[name]
    x, key = ones(*shape, device=device) * math.inf, keys(1, device)[0]
    assert function(make(0.0), x, key=key) is x
    assert torch.equal(function(make(1.0), x, key=key), torch.zeros_like(x))
    gradient = grad(lambda x: function(make(1.0), x, key=key).sum())(ones(*shape, device=device))
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("name", FORMS)
@given(rate=st.sampled_from([0.1, 0.5, 0.75]), seed=st.integers(0, 99))
def test_values_are_the_formula(name: str, rate: float, seed: int, device: torch.device) -> None:
    """Kept elements are x / (1 - p), or a x + b in the alpha forms; dropped ones 0, or b - a alpha."""
    make, function, shape = FORMS[name]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device) + 1
    y = function(make(rate), x, key=pn.random.key(seed, device=device))
    if "Alpha" in name:
        a = 1 / math.sqrt((1 - rate) * (1 + rate * ALPHA**2))
        kept, dropped = a * x + a * rate * ALPHA, torch.full_like(x, a * rate * ALPHA - a * ALPHA)
    else:
        kept, dropped = x / (1 - rate), torch.zeros_like(x)
    near = torch.stack([(y - value).abs() for value in (kept, dropped)]).amin(0)
    assert near.max() < 1e-12


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_how_many_are_dropped(name: str, rate: float, device: torch.device) -> None:
    """The share of dropped elements or channels is the rate, to five standard deviations, and channels drop as one."""
    make, function, _ = FORMS[name]
    space = DIMENSIONS.get(name, 0)
    x = ones(100, 200, *[2] * space, device=device)
    y = function(make(rate), x, key=pn.random.key(3, device=device))
    changed = (y - y.amin()).abs() < 1e-12
    by_channel = changed.flatten(2) if space else changed[..., None]
    assert torch.equal(by_channel.all(-1), by_channel.any(-1))
    share = by_channel[..., 0].double().mean()
    assert (share - rate).abs() < 5 * math.sqrt(rate * (1 - rate) / 20_000)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate: float, device: torch.device) -> None:
    """The mean of the output over many draws is the input."""
    x = torch.linspace(-2, 3, 7, dtype=torch.float64, device=device)
    y = vmap(lambda key: layers.dropout(layers.Dropout(rate), x, key=key))(keys(4000, device))
    error = 5 * math.sqrt(rate / (1 - rate) / 4000)
    assert ((y.mean(0) - x).abs() <= error * x.abs() + 1e-12).all()


@pytest.mark.parametrize("name", ["AlphaDropout", "FeatureAlphaDropout"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(name: str, rate: float, device: torch.device) -> None:
    """An input of mean 0 and variance 1 keeps both."""
    make, function, _ = FORMS[name]
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    x = (x - x.mean()) / x.std()
    y = function(make(rate), x, key=pn.random.key(1, device=device))
    assert y.mean().abs() < 0.02
    assert (y.var() - 1).abs() < 0.03


@pytest.mark.parametrize("name", FORMS)
def test_same_key_same_zeros(name: str, device: torch.device) -> None:
    """A key decides everything; another key decides otherwise; no argument changes."""
    make, function, shape = FORMS[name]
    first, second = keys(2, device)
    x = ones(*shape, device=device)
    check_purity(lambda p, x, key: function(p, x, key=key), make(), x, first)
    assert not torch.equal(function(make(), x, key=first), function(make(), x, key=second))


@pytest.mark.parametrize("name", FORMS)
def test_batched_over_keys(name: str, device: torch.device) -> None:
    """Under vmap every key gives the zeros that it gives alone, so examples have zeros of their own."""
    make, function, shape = FORMS[name]
    x, several = ones(3, *shape, device=device), keys(3, device)
    y = vmap(lambda x, key: function(make(), x, key=key))(x, several)
    for i in range(3):
        assert torch.equal(y[i], function(make(), x[i], key=several[i]))
    assert not torch.equal(y[0], y[1])
    shared = vmap(lambda x: function(make(), x, key=several[0]))(x)
    assert torch.equal(shared[1], y[0])


@pytest.mark.parametrize("name", FORMS)
def test_derivatives(name: str, device: torch.device) -> None:
    """The map is affine in the input: gradients in every mode are the kept elements' factors, second ones are 0."""
    make, function, shape = FORMS[name]
    x, several = ones(3, *shape, device=device), keys(3, device)

    def loss(x: Tensor, key: Tensor) -> Tensor:
        return function(make(0.4), x, key=key).square().sum()

    loop = []
    for example, key in zip(x, several, strict=True):
        given = example.clone().requires_grad_()
        loop.append(torch.autograd.grad(loss(given, key), given)[0])
    batched = vmap(grad(loss))(x, several)
    torch.testing.assert_close(batched, torch.stack(loop), rtol=1e-12, atol=1e-12)
    meta = grad(lambda x: vmap(grad(loss))(x, several).square().sum())(x)
    factor = jvp(lambda x: vmap(grad(loss))(x, several), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(meta, 2 * batched * factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_traced_and_compiled(name: str, device: torch.device) -> None:
    """A traced and a compiled call drop the very same elements."""
    make, function, shape = FORMS[name]
    x, key = ones(*shape, device=device), keys(1, device)[0]

    def call(x: Tensor, key: Tensor) -> Tensor:
        return function(make(0.4), x, key=key)

    expected = call(x, key)
    assert torch.equal(make_fx(call, tracing_mode="fake")(x, key)(x, keys(2, device)[1]), call(x, keys(2, device)[1]))
    torch.compiler.reset()
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x, key), expected)


@pytest.mark.parametrize("name", ["Dropout1d", "Dropout2d", "Dropout3d"])
def test_single_examples_drop_channels(name: str, device: torch.device) -> None:
    """An input without a batch dimension loses whole channels as well."""
    make, function, _ = FORMS[name]
    y = function(make(), ones(200, *[3] * DIMENSIONS[name], device=device), key=keys(1, device)[0])
    by_channel = (y == 0).flatten(1)
    assert torch.equal(by_channel.all(1), by_channel.any(1))
    assert 50 < by_channel[:, 0].sum() < 150


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", FORMS)
def test_dtype_is_the_inputs(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """The result has the input's dtype, and the zeros do not depend on it."""
    make, function, shape = FORMS[name]
    x, key = ones(*shape, device=device), keys(1, device)[0]
    y = function(make(), x.to(dtype), key=key)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), function(make(), x, key=key), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", FORMS)
def test_modules_of_torch_in_the_place_of_the_container(name: str, device: torch.device) -> None:
    """A torch.nn module gives its rate."""
    make, function, shape = FORMS[name]
    x, key = ones(*shape, device=device), keys(1, device)[0]
    assert torch.equal(function(getattr(nn, name)(0.3), x, key=key), function(make(0.3), x, key=key))


@pytest.mark.parametrize("name", FORMS)
def test_container(name: str) -> None:
    """The rate is 0.5 by default, is written as torch writes it, and is part of the structure; there are no leaves."""
    make, _, _ = FORMS[name]
    assert repr(make()) == f"{name}(p=0.5)"
    assert pn.tree.leaves(make()) == []
    assert not pn.tree.equal(make(0.1), make(0.2))
    assert not pn.is_stateful(make())


KEY = pn.random.key(0)
ERRORS: list[tuple[Callable[[], Any], type, str]] = [
    (
        lambda: layers.Dropout(1.5),
        ValueError,
        "Dropout: p is the probability of a zero and must be from 0 to 1, got 1.5.",
    ),
    (
        lambda: layers.AlphaDropout(p=-0.1),
        ValueError,
        "AlphaDropout: p is the probability of a zero and must be from 0 to 1, got -0.1.",
    ),
    (
        lambda: layers.dropout1d(layers.Dropout1d(), torch.zeros(3), key=KEY),
        ValueError,
        "dropout1d: expected an input of 3 dimensions, [batch, channels, *space], or 2 for one example, got shape [3]. "
        "Use the form for another number of dimensions, or Dropout for single elements.",
    ),
    (
        lambda: layers.dropout3d(layers.Dropout3d(), torch.zeros(2, 3, 4)),
        ValueError,
        "dropout3d: expected an input of 5 dimensions, [batch, channels, *space], or 4 for one example, got shape [2, "
        "3, 4]. Use the form for another number of dimensions, or Dropout for single elements.",
    ),
    (
        lambda: layers.feature_alpha_dropout(layers.FeatureAlphaDropout(), torch.zeros(3), key=KEY),
        ValueError,
        "feature_alpha_dropout: expected an input of shape [batch, channels, *space], got [3]. For single elements use "
        "AlphaDropout.",
    ),
    (
        lambda: layers.dropout(layers.Dropout(), torch.zeros(3, device="meta"), key=KEY),
        ValueError,
        "dropout: the key is on cpu and x on meta; write key.to(x.device).",
    ),
    (
        lambda: layers.dropout(layers.Dropout(), torch.zeros(3), key=1),
        ValueError,
        "key must be a random key, a tensor made by purenn.random.key(seed), not int 1",
    ),
]


@pytest.mark.parametrize(("wrong", "kind", "text"), ERRORS)
def test_errors(wrong: Callable[[], Any], kind: type[Exception], text: str) -> None:
    """Rates and inputs that cannot work are refused with what was expected, what came, and what to do."""
    with pytest.raises(kind) as caught:
        wrong()
    assert isinstance(caught.value, pn.errors.PurennError)
    assert str(caught.value) == text
