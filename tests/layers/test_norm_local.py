"""Normalisation across channels: equal to torch.nn's, differentiable any number of times."""

from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purenn as pn
from purenn import layers
from purenn.layers import CrossMapLRN2d, LocalResponseNorm, cross_map_lrn2d, local_response_norm

OPTIONS = {
    "size": st.integers(1, 6),
    "alpha": st.sampled_from([1e-4, 0.8]),
    "beta": st.sampled_from([0.75, 1.3]),
    "k": st.sampled_from([1.0, 2.0]),
    "channels": st.integers(1, 7),
}


@given(space=st.sampled_from([(5,), (3, 4), (2, 3, 2), (0,)]), **OPTIONS)
def test_local_response_norm_equals_torch(
    channels: int, space: tuple[int, ...], device: torch.device, **options: Any
) -> None:
    """Values and derivatives are torch's for every combination of options."""
    x = numbers(2, channels, *space, device=device)
    check_equals_module(LocalResponseNorm(**options), local_response_norm, nn.LocalResponseNorm(**options), x)


@pytest.mark.parametrize("name", ["LocalResponseNorm", "CrossMapLRN2d"])
def test_larger_inputs_equal_torch(name: str, device: torch.device) -> None:
    """The windows of larger inputs are added up in another way, to the same sums."""
    x, options = numbers(2, 9, 8, 9, device=device), (4, 0.8, 0.7, 1.5)
    same(getattr(layers, name)(*options)(x), getattr(nn, name)(*options)(x))
    check_transformations(lambda seed: getattr(layers, name)(*options), lambda p, x: p(x), x.unsqueeze(0))


def test_local_response_norm_is_its_formula(device: torch.device) -> None:
    """Inputs of any strides are normalised as the paper says."""
    x = numbers(2, 5, 4, 3, device=device).transpose(1, 2)
    windows = torch.stack([(x[:, max(0, c - 1) : c + 2] ** 2).sum(1) / 3 for c in range(4)], 1)
    same(local_response_norm(LocalResponseNorm(3, 0.5, 0.7, 1.5), x), x / (1.5 + 0.5 * windows) ** 0.7)


@given(**OPTIONS)
def test_cross_map_lrn_equals_torch(channels: int, device: torch.device, **options: Any) -> None:
    """Values are those of torch's layer, with its first channel in all windows; derivatives are those of the values."""
    x = numbers(2, channels, 2, 3, device=device)
    same(cross_map_lrn2d(CrossMapLRN2d(**options), x), nn.CrossMapLRN2d(**options)(x))
    same(cross_map_lrn2d(nn.CrossMapLRN2d(**options), x), nn.CrossMapLRN2d(**options)(x))
    assert torch.autograd.gradcheck(CrossMapLRN2d(**options), x[:1, :, :1].clone().requires_grad_())


@pytest.mark.parametrize(
    ("p", "shape"),
    [
        (LocalResponseNorm(3, alpha=0.5), (2, 4, 3)),
        (LocalResponseNorm(2, alpha=0.5), (2, 4, 3, 2)),
        (CrossMapLRN2d(3, alpha=0.5), (2, 4, 3, 2)),
    ],
)
def test_transformations(p: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Both keep the promises of the shared table."""
    check_transformations(lambda seed: p, type(p).__call__, numbers(2, *shape, device=device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [LocalResponseNorm, CrossMapLRN2d])
def test_half_precision(cls: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Results are those of single precision up to rounding; sums of squares that exceed float16 do not overflow."""
    x = (60 * numbers(2, 9, 8, 9, device=device)).to(dtype)
    got = cls(5, alpha=0.5)(x)
    assert got.dtype == dtype
    same(got.float(), cls(5, alpha=0.5)(x.float()), tolerance=0.03)


def test_repr() -> None:
    """Options are written as torch writes them."""
    assert repr(LocalResponseNorm(2)) == repr(nn.LocalResponseNorm(2))
    assert repr(CrossMapLRN2d(2, 0.1)) == "CrossMapLRN2d(2, alpha=0.1, beta=0.75, k=1.0)"
    assert pn.tree.leaves(CrossMapLRN2d(2)) == []


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: LocalResponseNorm(2)(torch.zeros(4, 4)),
            "local_response_norm: x must be [batch, channels, *space] with at least one dimension of space, got shape "
            "[4, 4]. Add what is missing: x.unsqueeze(0) a batch, x.unsqueeze(-1) space.",
        ),
        (
            lambda: CrossMapLRN2d(2)(torch.zeros(3, 4, 4)),
            "cross_map_lrn2d: x must be [batch, channels, height, width], got shape [3, 4, 4]. An image without a "
            "batch dimension needs x.unsqueeze(0).",
        ),
    ],
)
def test_errors(call: Any, text: str) -> None:
    """Inputs without batch or space are refused."""
    with pytest.raises(pn.errors.ShapeError) as caught:
        call()
    assert str(caught.value) == text
