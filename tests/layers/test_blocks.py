"""Squeeze and excitation, learnable scale, depthwise separable convolution: formulas, sizes, promises."""

from typing import Any

import pytest
import torch
from _reference import numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

import bridge
import purenn as pn
from purenn.layers import (
    DepthwiseSeparableConv2d,
    LearnableScale,
    SqueezeExcitation,
    depthwise_separable_conv2d,
    learnable_scale,
    squeeze_excitation,
)


def key(seed: int = 0, device: torch.device | None = None) -> torch.Tensor:
    """A random key."""
    return pn.random.key(seed, device=device)


def copy_into(module: nn.Module, p: Any) -> nn.Module:
    """The module with the parameters of the container, in order."""
    values = [leaf.detach().clone() for leaf in pn.tree.leaves(p)]
    module.load_state_dict(dict(zip(module.state_dict(), values, strict=True)))
    return module.to(values[0])


def check_gradients(p: Any, module: nn.Module, x: torch.Tensor) -> None:
    """Values and gradients of a container and of a module with the same parameters."""
    same(p(x), module(x))
    got = pn.grad(lambda p: torch.sin(p(x)).sum())(p)
    expected = torch.autograd.grad(torch.sin(module(x)).sum(), list(module.parameters()))
    same(pn.tree.leaves(got), list(expected))


@given(channels=st.integers(2, 8), bias=st.booleans(), batch=st.sampled_from([(), (2,)]))
def test_squeeze_excitation_equals_modules(
    channels: int, bias: bool, batch: tuple[int, ...], device: torch.device
) -> None:
    """It is the published chain of mean, two linear maps and a sigmoid, also of a single image."""
    p = SqueezeExcitation.init(key(device=device), channels, 2, bias=bias, dtype=torch.float64)
    x = numbers(*batch, channels, 3, 4, device=device)
    gate = nn.Sequential(
        nn.Linear(channels, channels // 2, bias), nn.ReLU(), nn.Linear(channels // 2, channels, bias), nn.Sigmoid()
    )
    gate = copy_into(gate.double(), p)
    expected = x * gate(x.mean((-2, -1))).reshape(*batch, channels, 1, 1)
    same(squeeze_excitation(p, x), expected)


def test_squeeze_excitation_sizes(device: torch.device) -> None:
    """64 channels and the default reduction make 580 parameters, 512 without biases."""
    for bias, number in ((True, 580), (False, 512)):
        p = SqueezeExcitation.init(key(device=device), 64, bias=bias)
        assert sum(leaf.numel() for leaf in pn.tree.leaves(p)) == number
        assert p.channels == 64
    same(squeeze_excitation(p, torch.zeros(2, 64, 3, 3, device=device)), torch.zeros(2, 64, 3, 3, device=device))


@given(batch=st.sampled_from([(), (1,), (3,)]))
def test_learnable_scale_is_its_formula(batch: tuple[int, ...], device: torch.device) -> None:
    """Each channel has its factor and summand, and the result has the input's shape, also of a single image."""
    factors, summands = numbers(3, device=device), numbers(3, seed=1, device=device)
    p = LearnableScale(factors.reshape(1, 3, 1, 1), summands.reshape(1, 3, 1, 1))
    x = numbers(*batch, 3, 4, 5, device=device)
    expected = torch.stack([x.select(-3, c) * factors[c] + summands[c] for c in range(3)], -3)
    same(learnable_scale(p, x), expected)
    assert learnable_scale(p, x).shape == x.shape


def test_learnable_scale_starts_as_the_identity(device: torch.device) -> None:
    """Factors are one and summands zero, in the shape [1, channels, 1, 1]."""
    p, x = LearnableScale.init(5, device=device), torch.rand(2, 5, 3, 3, device=device)
    assert torch.equal(p(x), x)
    assert [tuple(leaf.shape) for leaf in pn.tree.leaves(p)] == [(1, 5, 1, 1)] * 2
    assert repr(p) == "LearnableScale(5)"


@given(
    kernel_size=st.sampled_from([1, 3, (2, 3)]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (1, 2)]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    padding_mode=st.sampled_from(["zeros", "circular"]),
)
def test_depthwise_separable_equals_modules(device: torch.device, bias: bool, **options: Any) -> None:
    """It is a convolution with as many groups as channels and a 1 x 1 convolution after it, for every option."""
    p = DepthwiseSeparableConv2d.init(key(device=device), 3, 4, bias=bias, dtype=torch.float64, **options)
    module = nn.Sequential(nn.Conv2d(3, 3, groups=3, bias=bias, **options), nn.Conv2d(3, 4, 1, bias=bias))
    check_gradients(p, copy_into(module.double(), p), numbers(2, 3, 6, 7, device=device))


def test_depthwise_separable_with_same_padding(device: torch.device) -> None:
    """The options are those of Conv2d; unbatched images pass."""
    p = DepthwiseSeparableConv2d.init(key(device=device), 3, 4, 3, padding="same")
    assert p(torch.zeros(3, 5, 6, device=device)).shape == (4, 5, 6)
    assert [path for path, _ in pn.tree.named_leaves(p)] == [
        "depthwise.weight",
        "depthwise.bias",
        "pointwise.weight",
        "pointwise.bias",
    ]


BLOCKS: dict[str, Any] = {
    "squeeze": lambda seed, **o: SqueezeExcitation.init(key(seed), 4, 2, **o),
    "scale": lambda seed, **o: pn.tree.map(lambda leaf: leaf + 0.1 * seed + 0.2, LearnableScale.init(4, **o)),
    "depthwise": lambda seed, **o: DepthwiseSeparableConv2d.init(key(seed), 4, 3, 2, **o),
}
FUNCTIONS = {"squeeze": squeeze_excitation, "scale": learnable_scale, "depthwise": depthwise_separable_conv2d}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_transformations(name: str, batch: tuple[int, ...], device: torch.device) -> None:
    """Every block keeps the promises of the shared table, for one image and for a batch."""
    check_transformations(
        lambda seed: BLOCKS[name](seed, dtype=torch.float64, device=device),
        FUNCTIONS[name],
        numbers(2, *batch, 4, 3, 3, device=device),
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_half_precision_and_meta(name: str, device: torch.device) -> None:
    """In bfloat16 results are those of single precision up to rounding; on meta nothing is drawn."""
    p, x = BLOCKS[name](1, device=device), numbers(2, 4, 3, 3, device=device).bfloat16()
    got = pn.tree.to(p, torch.bfloat16)(x)
    assert got.dtype == torch.bfloat16
    same(got.float(), p(x.float()), tolerance=0.05)
    leaves = pn.tree.leaves(BLOCKS[name](0, dtype=torch.bfloat16, device="meta"))
    assert all(leaf.is_meta and leaf.dtype == torch.bfloat16 for leaf in leaves)


@pytest.mark.parametrize("name", BLOCKS)
def test_as_a_module(name: str, device: torch.device) -> None:
    """Carried by a module, a block has the container's names and results."""
    p, x = BLOCKS[name](1, device=device), numbers(2, 4, 3, 3, device=device).float()
    module = bridge.to_module(p)
    assert list(module.state_dict()) == [path for path, _ in pn.tree.named_leaves(p)]
    same(module(x), p(x))
    same(vmap(p)(x), p(x), tolerance=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: SqueezeExcitation.init(key(), 8),
            pn.errors.ArgumentError,
            "SqueezeExcitation.init: reduction must lie between 1 and channels=8, got 16: channels // reduction "
            "features are left between the two maps. Use a smaller reduction.",
        ),
        (
            lambda: SqueezeExcitation.init(key(), 16)(torch.zeros(2, 3, 3, 16)),
            pn.errors.ShapeError,
            "squeeze_excitation: x must be [batch, 16, height, width] or [16, height, width], got shape [2, 3, 3, 16]. "
            "If its channels come last, move them: x.movedim(-1, -3).",
        ),
        *(
            (
                lambda shape=shape: LearnableScale.init(4)(torch.zeros(shape)),
                pn.errors.ShapeError,
                f"learnable_scale: x must be [batch, 4, height, width] or [4, height, width], got shape {list(shape)}. "
                f"If its channels come last, move them: x.movedim(-1, -3).",
            )
            for shape in ((2, 4), (2, 1, 3, 3), (5, 2, 4, 3, 3), (2, 3, 3))
        ),
        (
            lambda: DepthwiseSeparableConv2d.init(key(), 3, 4, 3, stride=2, padding="same"),
            pn.errors.ArgumentError,
            "Conv2d.init: padding='same' needs stride 1, got (2, 2). Give the padding in numbers.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Sizes and shapes that cannot work are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
