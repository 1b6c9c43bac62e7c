"""Linear layers: equal to torch.nn's, with every way to start their parameters."""

import math
from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import purenn as pn
from purenn import layers

SIZES = st.integers(1, 6)


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


@given(
    in_features=SIZES,
    out_features=SIZES,
    bias=st.booleans(),
    batch=st.sampled_from([(), (0,), (3,), (2, 3), (2, 1, 3)]),
)
def test_linear_equals_torch(
    in_features: int, out_features: int, bias: bool, batch: tuple[int, ...], device: torch.device
) -> None:
    """Values, gradients and second derivatives are torch's for inputs of any number of dimensions."""
    module = nn.Linear(in_features, out_features, bias, dtype=torch.float64, device=device)
    p = layers.Linear.init(key(device), in_features, out_features, bias=bias)
    check_equals_module(p, layers.linear, module, numbers(*batch, in_features, device=device))


class ModuleWithActivation(nn.Linear):
    """A linear map and PReLU, with the names of the fields of LinearActivation."""

    def __init__(self) -> None:
        super().__init__(4, 3, dtype=torch.float64)
        self.activation = nn.PReLU(dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x))


def test_linear_activation_equals_torch(device: torch.device) -> None:
    """An activation with parameters is a child, whose gradients and names are those of a module."""
    p = layers.LinearActivation.init(key(device), 4, 3, activation=layers.PReLU.init(device=device))
    check_equals_module(p, layers.linear_activation, ModuleWithActivation().to(device), numbers(2, 4, device=device))


@pytest.mark.parametrize("activation", [F.gelu, torch.tanh, layers.GELU(), layers.ReLU()])
def test_linear_activation_takes_functions_and_containers(activation: Any, device: torch.device) -> None:
    """The activation may be a function or a container; a batch of [32, 512] becomes [32, 256]."""
    p = layers.LinearActivation.init(key(device), 512, 256, activation=activation)
    x = numbers(32, 512, device=device).float()
    y = p(x)
    assert y.shape == (32, 256)
    assert torch.equal(y, activation(F.linear(x, p.weight, p.bias)))


def test_linear_activation_passes_its_key(device: torch.device) -> None:
    """An activation that draws is given the key; one that does not is not."""
    p = layers.LinearActivation.init(key(device), 4, 3, activation=layers.RReLU())
    x = numbers(2, 4, device=device).float()
    drawn = layers.linear_activation(p, x, key=key(device, 1))
    assert torch.equal(drawn, layers.rrelu(p.activation, F.linear(x, p.weight, p.bias), key=key(device, 1)))
    assert not torch.equal(drawn, layers.linear_activation(p, x))
    plain = layers.LinearActivation(p.weight, p.bias, layers.GELU())
    assert torch.equal(layers.linear_activation(plain, x, key=key(device, 1)), plain(x))


def test_scaled_linear(device: torch.device) -> None:
    """The scale multiplies the weight and not the bias; there are three parameters; [3, 10] becomes [3, 5]."""
    p = layers.ScaledLinear.init(key(device), 10, 5, dtype=torch.float64)
    assert [name for name, _ in pn.tree.named_leaves(p)] == ["weight", "bias", "gamma"]
    assert (p.gamma.shape, p.gamma.item()) == ((), 1)
    assert p.weight.abs().max() <= math.sqrt(3 / 10)
    assert p.weight.abs().max() > 0.9 * math.sqrt(3 / 10)
    x = numbers(3, 10, device=device)
    p = pn.replace(p, gamma=torch.tensor(2.5, dtype=torch.float64, device=device), bias=numbers(5, device=device))
    assert p(x).shape == (3, 5)
    same(p(x), 2.5 * x @ p.weight.T + p.bias)
    assert len(pn.tree.leaves(layers.ScaledLinear.init(key(device), 10, 5, bias=False))) == 2


@pytest.mark.parametrize(
    ("init", "bound", "deviation", "bias"),
    [
        ("torch", 1 / 20, 1 / 20 / math.sqrt(3), 1 / 20 / math.sqrt(3)),
        ("xavier", math.sqrt(6 / 500), math.sqrt(2 / 500), 0.0),
        ("kaiming", math.sqrt(6 / 400), math.sqrt(2 / 400), 0.01),
        ("normal", None, 1.0, 0.0),
        ("normal_bias", None, 1.0, 1.0),
    ],
)
def test_linear_init(init: str, bound: float | None, deviation: float, bias: float, device: torch.device) -> None:
    """Each scheme has the bounds and the deviation of its formula, for 400 features to 100."""
    p = layers.Linear.init(key(device), 400, 100, init=init, dtype=torch.float64)
    assert p.weight.shape == (100, 400)
    if bound is not None:
        assert bound * 0.999 < p.weight.abs().max() <= bound
    assert abs(p.weight.std() / deviation - 1) < 0.02
    assert abs(p.weight.mean() / deviation) < 0.02
    if init in ("torch", "normal_bias"):
        assert abs(p.bias.std() / bias - 1) < 0.25
    else:
        assert torch.equal(p.bias, torch.full((100,), bias, dtype=torch.float64, device=device))


def test_linear_init_by_functions(device: torch.device) -> None:
    """A pair of initializers is used for weight and bias, and without a bias the second is not needed."""

    def ones(key: Tensor, shape: tuple[int, ...], *, dtype: Any, device: Any) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    p = layers.Linear.init(key(device), 3, 2, init=(ones, ones), device=device)
    assert torch.equal(p.weight, torch.ones(2, 3, device=device))
    assert torch.equal(p.bias, torch.ones(2, device=device))
    for init in ("torch", "xavier", "kaiming", "normal", "normal_bias"):
        assert layers.Linear.init(key(device), 3, 2, init=init, bias=False).bias is None


def test_init_is_reproducible(device: torch.device) -> None:
    """The same key gives the same parameters, another key others; weight and bias are drawn independently."""
    p, q = (layers.Linear.init(key(device), 5, 5) for _ in range(2))
    assert pn.tree.equal(p, q)
    assert not pn.tree.equal(p, layers.Linear.init(key(device, 1), 5, 5))
    assert not torch.equal(p.weight[0], p.bias)


def test_init_under_vmap_is_an_ensemble(device: torch.device) -> None:
    """Vmapped over keys, init gives the models of a loop, stacked."""
    keys = pn.random.split(key(device), 3)
    got = torch.func.vmap(lambda key: layers.Linear.init(key, 4, 2, dtype=torch.float64))(keys)
    pn.tree.allclose(got, pn.tree.stack([layers.Linear.init(k, 4, 2, dtype=torch.float64) for k in keys]))
    assert got.weight.shape == (3, 2, 4)
    assert (got.in_features, got.out_features) == (4, 2)


@pytest.mark.parametrize("cls", [layers.Linear, layers.ScaledLinear])
def test_init_on_meta(cls: Any, device: torch.device) -> None:
    """On the meta device nothing is allocated, and shapes and dtypes are right."""
    p = cls.init(key(device), 10**6, 10**6, dtype=torch.bfloat16, device="meta")
    assert all(leaf.is_meta and leaf.dtype == torch.bfloat16 for leaf in pn.tree.leaves(p))
    assert (p.weight.shape, p.bias.shape) == ((10**6, 10**6), (10**6,))


def test_repr(device: torch.device) -> None:
    """A linear layer prints its sizes, and its children below them."""
    p = layers.LinearActivation.init(key(device), 3, 2, activation=torch.tanh, bias=False)
    assert repr(p) == (
        "LinearActivation(in_features=3, out_features=2, bias=False\n  (activation): Lambda(function=tanh)\n)"
    )


def of_linear(seed: int) -> layers.Linear:
    """A model for the shared table."""
    return layers.Linear(numbers(3, 4, seed=seed), numbers(3, seed=seed + 9))


@pytest.mark.parametrize(
    ("make", "function"),
    [
        (of_linear, layers.linear),
        (lambda seed: layers.Linear(numbers(3, 4, seed=seed), None), layers.linear),
        (
            lambda seed: layers.LinearActivation(
                numbers(3, 4, seed=seed), numbers(3, seed=seed + 9), layers.PReLU(numbers(1, seed=seed))
            ),
            layers.linear_activation,
        ),
        (
            lambda seed: layers.ScaledLinear(numbers(3, 4, seed=seed), numbers(3), numbers(seed=seed)),
            layers.scaled_linear,
        ),
    ],
)
@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
def test_transformations(make: Any, function: Any, batch: tuple[int, ...], device: torch.device) -> None:
    """Every linear layer keeps the promises of the shared table, for one example and for batches."""
    check_transformations(
        lambda seed: pn.tree.to(make(seed), device),
        function,
        numbers(3, *batch, 4, device=device),
        compile=batch == (2,),
    )


def test_vmap_over_the_bias_alone(device: torch.device) -> None:
    """Models may differ in the bias alone."""
    p = pn.tree.to(of_linear(0), device)
    x, biases = numbers(4, device=device), numbers(5, 3, device=device)
    got = torch.func.vmap(lambda bias: layers.linear(pn.replace(p, bias=bias), x))(biases)
    same(got, F.linear(x, p.weight) + biases)


def stateful_activation() -> Any:
    """A container that returns new state with its result."""

    @pn.container
    class Counting(pn.Layer):
        count: Tensor = pn.buffer()

    @pn.applies(Counting, stateful=True)
    def counting(p: Counting, x: Tensor, *, train: bool = False) -> tuple[Tensor, Counting]:
        return x, pn.replace(p, count=p.count + 1)

    return Counting(torch.zeros(()))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda key: layers.Linear.init(key, 5, 3)(torch.zeros(2, 4)),
            pn.errors.ShapeError,
            "linear: the last dimension of x must be in_features=5, got shape [2, 4]. Flatten or transpose x so that "
            "its features come last.",
        ),
        (
            lambda key: layers.Linear.init(key, 5, 3)(torch.zeros(())),
            pn.errors.ShapeError,
            "linear: the last dimension of x must be in_features=5, got shape []. Flatten or transpose x so that "
            "its features come last.",
        ),
        (
            lambda key: layers.ScaledLinear.init(key, 5, 3)(torch.zeros(4)),
            pn.errors.ShapeError,
            "scaled_linear: the last dimension of x must be in_features=5, got shape [4]. Flatten or transpose x so "
            "that its features come last.",
        ),
        (
            lambda key: layers.Linear.init(key, 5, 3, init="glorot"),
            pn.errors.ArgumentError,
            "Linear.init: init must be one of torch, xavier, kaiming, normal, normal_bias, or a pair of initializers "
            "for weight and bias, got 'glorot'.",
        ),
        (
            lambda key: layers.LinearActivation.init(key, 5, 3, activation=stateful_activation()),
            pn.errors.ContainerError,
            "LinearActivation.init: activation must return a tensor alone, but Counting returns its new state as well. "
            "Put a Linear and the Counting into a Sequential instead.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call(pn.random.key(0))
    assert str(caught.value) == text
