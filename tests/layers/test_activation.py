"""Activations: equal to torch.nn's, differentiable twice and batchable."""

import math
from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import purenn as pn
from purenn import layers

SLOPE = st.floats(0.05, 2)
# Class, its function, and the options that it takes.
ELEMENTWISE: dict[str, tuple[Any, dict[str, st.SearchStrategy]]] = {
    "ReLU": (layers.relu, {}),
    "ReLU6": (layers.relu6, {}),
    "Hardtanh": (layers.hardtanh, {"min_val": st.floats(-2, 0), "max_val": st.floats(0.1, 2)}),
    "Hardswish": (layers.hardswish, {}),
    "Hardshrink": (layers.hardshrink, {"lambd": SLOPE}),
    "Softshrink": (layers.softshrink, {"lambd": SLOPE}),
    "Threshold": (layers.threshold, {"threshold": st.floats(-1, 1), "value": st.floats(-9, 9)}),
    "LeakyReLU": (layers.leaky_relu, {"negative_slope": SLOPE}),
    "RReLU": (layers.rrelu, {"lower": st.floats(0, 0.3), "upper": st.floats(0.3, 1)}),
    "ELU": (layers.elu, {"alpha": SLOPE}),
    "SELU": (layers.selu, {}),
    "CELU": (layers.celu, {"alpha": SLOPE}),
    "Sigmoid": (layers.sigmoid, {}),
    "LogSigmoid": (layers.log_sigmoid, {}),
    "Tanh": (layers.tanh, {}),
    "Tanhshrink": (layers.tanhshrink, {}),
    "Softsign": (layers.softsign, {}),
    "Softplus": (layers.softplus, {"beta": SLOPE, "threshold": st.floats(1, 20)}),
    "SiLU": (layers.silu, {}),
    "Mish": (layers.mish, {}),
    "GELU": (layers.gelu, {"approximate": st.sampled_from(["none", "tanh"])}),
}
ALONG_A_DIMENSION = {
    "GLU": (layers.glu, (2, 4, 6)),
    "Softmin": (layers.softmin, (2, 3, 4)),
    "Softmax": (layers.softmax, (2, 3, 4)),
    "LogSoftmax": (layers.log_softmax, (2, 3, 4)),
}
REQUIRED = {"Threshold": {"threshold": 0.1, "value": 0.5}}
SHAPES = st.sampled_from([(), (5,), (0, 3), (2, 3), (2, 3, 4), (2, 1, 3, 2)])
SPECIAL = [0.0, -0.0, 0.1, 0.5, -0.5, 1, -1, 3, -3, 6, 20, 1e5, -1e5, math.inf, -math.inf, math.nan]


class HardsigmoidFormula(nn.Module):
    """Hardsigmoid as the paper writes it; torch's own derivative is 1 / 6 in single precision, whatever the dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() < 3, x / 6 + 0.5, (x >= 3).to(x))


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(data=st.data(), shape=SHAPES, seed=st.integers(0, 99))
def test_elementwise_equals_torch(
    name: str, data: st.DataObject, shape: tuple[int, ...], seed: int, device: torch.device
) -> None:
    """Values, gradients and second derivatives are torch's, for every option and shape."""
    function, strategies = ELEMENTWISE[name]
    options = {option: data.draw(strategy) for option, strategy in strategies.items()}
    module = getattr(nn, name)(**options).eval()
    p = getattr(layers, name)(**options)
    check_equals_module(p, function, module, 3 * numbers(*shape, seed=seed, device=device))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_kinks_and_infinities_equal_torch(name: str, device: torch.device) -> None:
    """Values and gradients are torch's at every kink, at zero of both signs, at infinity and at NaN."""
    function, _ = ELEMENTWISE[name]
    options = REQUIRED.get(name, {})
    x = torch.tensor(SPECIAL, dtype=torch.float64, device=device)
    check_equals_module(
        getattr(layers, name)(**options), function, getattr(nn, name)(**options).eval(), x, second_order=False
    )


@pytest.mark.parametrize("values", [SPECIAL, torch.linspace(-4, 4, 30).tolist()])
def test_hardsigmoid_equals_torch(values: list[float], device: torch.device) -> None:
    """Values are torch's; so are gradients in float32, while in float64 they have the digits that torch's lack."""
    p, module = layers.Hardsigmoid(), nn.Hardsigmoid()
    x = torch.tensor(values, dtype=torch.float64, device=device)
    same(layers.hardsigmoid(p, x), module(x), tolerance=1e-15)
    x = x[x.isfinite()]
    check_equals_module(p, layers.hardsigmoid, HardsigmoidFormula(), x)
    check_equals_module(p, layers.hardsigmoid, module, x.float(), second_order=False, tolerance=1e-6)


@pytest.mark.parametrize("name", ALONG_A_DIMENSION)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_along_a_dimension_equals_torch(name: str, dim: int, device: torch.device) -> None:
    """Values, gradients and second derivatives are torch's along every dimension."""
    function, shape = ALONG_A_DIMENSION[name]
    check_equals_module(
        getattr(layers, name)(dim=dim), function, getattr(nn, name)(dim=dim), numbers(*shape, device=device)
    )


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5)])
def test_softmax2d_equals_torch(shape: tuple[int, ...], device: torch.device) -> None:
    """Softmax2d adds up over the channels of a batch of images and of a single one."""
    check_equals_module(layers.Softmax2d(), layers.softmax2d, nn.Softmax2d(), numbers(*shape, device=device))


@pytest.mark.parametrize(
    ("slopes", "shape"), [(1, ()), (1, (4,)), (1, (2, 3)), (3, (2, 3)), (3, (2, 3, 4)), (3, (2, 3, 2, 2))]
)
def test_prelu_equals_torch(slopes: int, shape: tuple[int, ...], device: torch.device) -> None:
    """One slope fits any shape, several belong to dimension 1; the slopes' gradients are torch's."""
    module = nn.PReLU(slopes, init=0.3).double().to(device)
    check_equals_module(layers.PReLU.init(slopes), layers.prelu, module, numbers(*shape, device=device))


def test_prelu_at_kinks_equals_torch(device: torch.device) -> None:
    """PReLU's gradients are torch's at zero of both signs and at huge numbers."""
    x = torch.tensor([0.0, -0.0, 1e300, -1e300], dtype=torch.float64, device=device)
    check_equals_module(layers.PReLU.init(), layers.prelu, nn.PReLU().double().to(device), x, second_order=False)


def test_prelu_init(device: torch.device) -> None:
    """The slopes start at 0.25, or at what is asked for, in the dtype and on the device that are asked for."""
    p = layers.PReLU.init(device=device)
    assert torch.equal(p.weight, torch.tensor([0.25], device=device))
    p = layers.PReLU.init(3, init=0.5, dtype=torch.bfloat16, device="meta")
    assert (p.weight.shape, p.weight.dtype, p.weight.device.type) == ((3,), torch.bfloat16, "meta")
    assert repr(p) == "PReLU(num_parameters=3)"


def test_rrelu_draws_slopes(device: torch.device) -> None:
    """With a key the negative elements are scaled by slopes from the interval, each by its own; the others stay."""
    x = numbers(50, 50, device=device)
    p = layers.RReLU(0.2, 0.6)
    y = layers.rrelu(p, x, key=pn.random.key(1, device=device))
    slopes = (y / x)[x < 0]
    assert torch.equal(y[x > 0], x[x > 0])
    assert slopes.min() >= 0.2
    assert slopes.max() <= 0.6
    assert abs(slopes.mean() - 0.4) < 0.02
    assert slopes.unique().numel() > 1000
    assert not torch.equal(y, layers.rrelu(p, x, key=pn.random.key(2, device=device)))


def test_rrelu_gradient_is_the_slope(device: torch.device) -> None:
    """The derivative is 1 where positive and the drawn slope elsewhere."""
    x = numbers(20, device=device).requires_grad_()
    y = layers.rrelu(layers.RReLU(), x, key=pn.random.key(1, device=device))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y / x).detach())


def test_rrelu_draws_for_each_key_under_vmap(device: torch.device) -> None:
    """Under vmap over keys every example has slopes of its own, those of a loop."""
    keys = pn.random.split(pn.random.key(0, device=device), 3)
    x = numbers(3, 4, device=device)
    p = layers.RReLU()
    got = torch.func.vmap(lambda x, key: layers.rrelu(p, x, key=key))(x, keys)
    assert torch.equal(got, torch.stack([layers.rrelu(p, one, key=key) for one, key in zip(x, keys, strict=True)]))


@pytest.mark.parametrize(
    "name", [*ELEMENTWISE, "Hardsigmoid", *ALONG_A_DIMENSION, "Softmax2d", "PReLU", "PReLU of channels"]
)
def test_transformations(name: str, device: torch.device) -> None:
    """Every activation keeps the promises of the shared table."""
    shape = (3, 2, 4, 2)
    if name in ELEMENTWISE:
        function, _ = ELEMENTWISE[name]
        p = getattr(layers, name)(**REQUIRED.get(name, {}))
    elif name in ALONG_A_DIMENSION:
        function, _ = ALONG_A_DIMENSION[name]
        p = getattr(layers, name)(dim=-2)
    elif name in ("Hardsigmoid", "Softmax2d"):
        function, p = getattr(layers, name.lower()), getattr(layers, name)()
    else:
        slopes = 1 if name == "PReLU" else 4

        def make(seed: int) -> layers.PReLU:
            return layers.PReLU(numbers(slopes, seed=seed, device=device))

        check_transformations(make, layers.prelu, numbers(*shape, device=device))
        return
    check_transformations(lambda seed: p, function, numbers(*shape, device=device))


def test_rrelu_with_key_keeps_the_promises(device: torch.device) -> None:
    """RReLU is differentiable, batchable and repeatable also when it draws."""
    key = pn.random.key(3, device=device)

    def apply(p: layers.RReLU, x: Tensor) -> Tensor:
        return layers.rrelu(p, x, key=pn.random.key(3, device=device))

    check_transformations(lambda seed: layers.RReLU(), apply, numbers(3, 2, 4, device=device))
    check_purity(lambda x, key: layers.rrelu(layers.RReLU(), x, key=key), numbers(4, device=device), key)


def test_silu_at_minus_infinity(device: torch.device) -> None:
    """SiLU of minus infinity is NaN, as documented."""
    x = torch.tensor([-math.inf], device=device)
    assert layers.silu(layers.SiLU(), x).isnan().all()


def test_call_is_the_function(device: torch.device) -> None:
    """A container is called as a layer, and prints its options."""
    x = numbers(4, device=device)
    p = layers.LeakyReLU(0.2)
    assert torch.equal(p(x), layers.leaky_relu(p, x))
    assert repr(p) == "LeakyReLU(negative_slope=0.2)"
    assert repr(layers.GELU("tanh")) == "GELU(approximate='tanh')"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda x: layers.glu(layers.GLU(), x),
            pn.errors.ShapeError,
            "glu: dimension -1 is split into halves, so its size must be even, got 3 (x of shape [2, 3]).",
        ),
        (
            lambda x: layers.softmax2d(layers.Softmax2d(), x),
            pn.errors.ShapeError,
            "softmax2d: x must be [batch, channels, height, width] or [channels, height, width], got shape [2, 3]. For "
            "another dimension use Softmax(dim).",
        ),
        (
            lambda x: layers.prelu(layers.PReLU.init(4), x),
            pn.errors.ShapeError,
            "prelu: x has shape [2, 3], but there are 4 slopes, one for each channel (dimension 1). Give x that many "
            "channels, or use one slope for all: PReLU.init().",
        ),
        (
            lambda x: layers.rrelu(layers.RReLU(0.5, 0.1), x),
            pn.errors.ArgumentError,
            "rrelu: lower must not be above upper, got lower=0.5 and upper=0.1.",
        ),
        (
            lambda x: layers.Softmax(),
            pn.errors.ContainerError,
            "Softmax needs a value for the field 'dim'.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str, device: torch.device) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call(numbers(2, 3, device=device))
    assert str(caught.value) == text
