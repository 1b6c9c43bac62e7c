"""Rows 1 to 8 of the list of components: linear maps, convolutions, scales, shapes, activations."""

import math

import pytest
import torch
import torch.nn.functional as F
from _matrix import check_cell
from _reference import check_equals_module, numbers, same
from torch import Tensor, nn

import purenn as pn
from purenn import layers
from purenn.errors import ShapeError


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 0, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_row_01_linear(shape: tuple[int, ...], bias: bool, device: torch.device) -> None:
    """It is nn.Linear for one dimension and for many, and its bias may be batched, which no in-place sum survives."""
    p = layers.Linear.init(key(device), 5, 3, bias=bias, dtype=torch.float64)
    module = nn.Linear(5, 3, bias=bias, device=device, dtype=torch.float64)
    check_equals_module(p, layers.linear, module, numbers(*shape, device=device))
    if bias:
        x, biases = numbers(*shape, device=device), numbers(4, 3, seed=1, device=device)
        rows = pn.vmap(lambda b: layers.linear(pn.replace(p, bias=b), x))(biases)
        same(rows, torch.stack([x @ p.weight.mT + b for b in biases]))


def test_row_01_schemes(device: torch.device) -> None:
    """The option `init` has torch's default, xavier, kaiming with bias 0.01, and N(0, 1) with and without its bias."""

    def drawn(scheme: str) -> layers.Linear:
        return layers.Linear.init(key(device), 300, 200, init=scheme, dtype=torch.float64)

    for scheme, bound, bias in (
        ("torch", 300**-0.5, None),
        ("xavier", math.sqrt(6 / 500), 0.0),
        ("kaiming", math.sqrt(6 / 300), 0.01),
    ):
        p = drawn(scheme)
        assert 0.99 * bound < p.weight.abs().max() <= bound
        assert abs(p.weight.std() - bound / math.sqrt(3)) < 0.01 * bound
        assert bias is None or (p.bias == bias).all()
    for scheme in ("normal", "normal_bias"):
        p = drawn(scheme)
        assert abs(p.weight.std() - 1) < 0.02
        assert abs(p.weight.mean()) < 0.02
        assert (scheme == "normal") == bool((p.bias == 0).all())
    assert 0.8 < drawn("normal_bias").bias.std() < 1.2


def test_row_02_linear_with_activation(device: torch.device) -> None:
    """CustomLinear(512, 256, activation=gelu) maps [32, 512] to [32, 256]; the activation is a function or a layer."""
    x = numbers(32, 512, device=device)
    for activation in (F.gelu, layers.GELU()):
        p = layers.LinearActivation.init(key(device), 512, 256, activation=activation, dtype=torch.float64)
        y = layers.linear_activation(p, x)
        assert y.shape == (32, 256)
        z = x @ p.weight.mT + p.bias
        same(y, z * (1 + torch.erf(z / math.sqrt(2))) / 2)


def test_row_03_scaled_linear(device: torch.device) -> None:
    """ScaledLinear has 3 parameters, gamma starts at 1, the weight's bound is sqrt(3 / in), [3, 10] becomes [3, 5]."""
    p = layers.ScaledLinear.init(key(device), 10, 5, dtype=torch.float64)
    assert [(path, leaf.shape) for path, leaf in pn.tree.named_leaves(p)] == [
        ("weight", (5, 10)),
        ("bias", (5,)),
        ("gamma", ()),
    ]
    assert p.gamma == 1
    assert p.weight.abs().max() <= math.sqrt(3 / 10)
    wide = layers.ScaledLinear.init(key(device), 1000, 300).weight
    assert wide.abs().max() > 0.999 * math.sqrt(3 / 1000)
    x, p = numbers(3, 10, device=device), pn.replace(p, gamma=torch.tensor(2.5, dtype=torch.float64, device=device))
    y = layers.scaled_linear(p, x)
    assert y.shape == (3, 5)
    same(y, 2.5 * (x @ p.weight.mT) + p.bias)
    gradient = pn.grad(lambda p: layers.scaled_linear(p, x).sum())(p)
    same(gradient.gamma, (x @ p.weight.mT).sum())


OPTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 2)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": (3, 1), "groups": 2, "bias": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch", [(2,), ()], ids=["batched", "unbatched"])
def test_row_04_convolution_by_hand(options: dict, batch: tuple[int, ...], device: torch.device) -> None:
    """Patches times kernels are nn.Conv2d, with int and tuple kernels, dilation, groups, batched or not."""
    p = layers.UnfoldConv2d.init(key(device), 4, 6, **options, dtype=torch.float64)
    module = nn.Conv2d(4, 6, **options, device=device, dtype=torch.float64)
    check_equals_module(p, layers.unfold_conv2d, module, numbers(*batch, 4, 7, 8, device=device))


def test_row_04_sizes(device: torch.device) -> None:
    """[32, 3, 224, 224] becomes [32, 64, 224, 224]; in float32 results are nn.Conv2d's to an absolute 1e-4."""
    p = layers.UnfoldConv2d.init(pn.random.key(0), 3, 64, 3, padding=1, device="meta")
    assert layers.unfold_conv2d(p, torch.empty(32, 3, 224, 224, device="meta")).shape == (32, 64, 224, 224)
    p = layers.UnfoldConv2d.init(key(device), 3, 64, 3, padding=1)
    x = torch.randn(1, 3, 40, 40, device=device)
    torch.testing.assert_close(layers.unfold_conv2d(p, x), F.conv2d(x, p.weight, p.bias, padding=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_row_05_convolutions(dimensions: int, mode: str, device: torch.device) -> None:
    """Conv1d, 2d and 3d are torch.nn's in all padding modes, and so are the transposed ones, which have only zeros."""
    x = numbers(2, 4, *[5] * dimensions, device=device)
    options: dict = {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}
    p = getattr(layers, f"Conv{dimensions}d").init(key(device), 4, 6, **options, padding_mode=mode, dtype=torch.float64)
    module = getattr(nn, f"Conv{dimensions}d")(4, 6, **options, padding_mode=mode, device=device, dtype=torch.float64)
    check_equals_module(p, getattr(layers, f"conv{dimensions}d"), module, x)
    if mode == "zeros":
        name = f"ConvTranspose{dimensions}d"
        p = getattr(layers, name).init(key(device), 4, 6, **options, output_padding=1, dtype=torch.float64)
        module = getattr(nn, name)(4, 6, **options, output_padding=1, device=device, dtype=torch.float64)
        check_equals_module(p, getattr(layers, f"conv_transpose{dimensions}d"), module, x)


def test_row_06_learnable_scale(device: torch.device) -> None:
    """Scale ones, bias zeros, [1, C, 1, 1]; what would be broadcast to another rank or other channels is refused."""
    p = layers.LearnableScale.init(3, dtype=torch.float64, device=device)
    assert torch.equal(p.scale, torch.ones(1, 3, 1, 1, dtype=torch.float64, device=device))
    assert torch.equal(p.bias, torch.zeros(1, 3, 1, 1, dtype=torch.float64, device=device))
    p = pn.replace(p, scale=numbers(1, 3, 1, 1, device=device), bias=numbers(1, 3, 1, 1, seed=1, device=device))
    x = numbers(2, 3, 4, 5, device=device)
    expected = torch.stack([x[:, c] * p.scale[0, c, 0, 0] + p.bias[0, c, 0, 0] for c in range(3)], 1)
    same(layers.learnable_scale(p, x), expected)
    assert layers.learnable_scale(p, x[0]).shape == (3, 4, 5)
    for shape in ((2, 3), (2, 1, 4, 5), (2, 3, 4, 5, 6), (3,)):
        with pytest.raises(ShapeError):
            layers.learnable_scale(p, torch.zeros(shape, dtype=torch.float64, device=device))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3, 4, 5), (4, 6)])
def test_row_07_flatten_and_unflatten(shape: tuple[int, ...], device: torch.device) -> None:
    """Flatten keeps dimension 0, for a batch of 0 and in channels_last as well; Unflatten takes it back."""
    x = numbers(*shape, device=device)
    for given in (x, *((x.contiguous(memory_format=torch.channels_last),) if len(shape) == 4 else ())):
        flat = layers.flatten(layers.Flatten(), given)
        assert flat.shape == (shape[0], math.prod(shape[1:]))
        assert torch.equal(flat, nn.Flatten()(given))
        assert torch.equal(layers.unflatten(layers.Unflatten(1, shape[1:]), flat), nn.Unflatten(1, shape[1:])(flat))
        assert torch.equal(layers.unflatten(layers.Unflatten(1, shape[1:]), flat), given)


ACTIVATIONS = tuple(nn.modules.activation.__all__)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("promise", ["forward", "gradients"])
def test_row_08_activations(name: str, promise: str, device: torch.device) -> None:
    """Each of torch.nn's 29 activations is here, with torch's values and gradients for all samples of the matrix."""
    assert hasattr(layers, name)
    check_cell(name, promise, device)


def test_row_08_there_are_29_and_silu_at_minus_infinity(device: torch.device) -> None:
    """There are 29; SiLU(-inf) is NaN as in torch, and its documentation says so."""
    assert len(ACTIVATIONS) == 29
    x = torch.tensor(-math.inf, device=device)
    assert layers.SiLU()(x).isnan()
    assert nn.SiLU()(x).isnan()
    assert "minus infinity" in (layers.SiLU.__doc__ or "")
