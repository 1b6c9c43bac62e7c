"""Variants of RMSNorm against their formulas, under every transformation, in half precision, as modules."""

from typing import Any

import pytest
import torch
from _reference import numbers, same
from _transformations import check_transformations
from torch import Tensor

import bridge
import purenn as pn
from purenn import layers
from purenn.errors import ArgumentError, ShapeError


def rms(x: Tensor, over: Tensor) -> Tensor:
    """Divided by the root mean square of some elements."""
    return x / (over.square().sum(-1, keepdim=True) / over.shape[-1] + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    """x times its logistic function."""
    return x / (1 + (-x).exp())


def weight(seed: int, device: torch.device) -> Tensor:
    """Factors of 8 features."""
    return numbers(8, seed=seed + 7, device=device)


VARIANTS: dict[str, tuple[Any, Any]] = {
    "zero-centred": (
        lambda w: layers.ZeroCenteredRMSNorm(w),
        lambda w, x: rms(x, x) * (1 + w),
    ),
    "gate first": (
        lambda w: layers.GatedRMSNorm(w),
        lambda w, x: rms(x * silu(x.flip(-1)), x * silu(x.flip(-1))) * w,
    ),
    "gate last": (
        lambda w: layers.GatedRMSNorm(w, gate_first=False),
        lambda w, x: rms(x, x) * w * silu(x.flip(-1)),
    ),
    "partial": (lambda w: layers.PartialRMSNorm(w, share=0.3), lambda w, x: rms(x, x[..., :3]) * w),
}


def applied(p: Any, x: Tensor) -> Tensor:
    """The layer; a gate is the input turned round."""
    return p(x, x.flip(-1)) if isinstance(p, layers.GatedRMSNorm) else p(x)


@pytest.mark.parametrize("name", VARIANTS)
def test_formula(name: str, device: torch.device) -> None:
    """Values and gradients are those of the formula; bfloat16 stays so, computed in float32."""
    make, formula = VARIANTS[name]
    w, x = weight(0, device), numbers(3, 2, 8, device=device)
    same(applied(make(w), x), formula(w, x))
    found = torch.func.grad(lambda w, x: applied(make(w), x).sin().sum(), (0, 1))(w, x)
    same(found, torch.func.grad(lambda w, x: formula(w, x).sin().sum(), (0, 1))(w, x))
    half = applied(make(w.bfloat16()), x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), formula(w.bfloat16().double(), x.bfloat16().double()), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", VARIANTS)
def test_transformations(name: str, device: torch.device) -> None:
    """They are pure, batched, differentiated and compiled as all layers are."""
    make, _ = VARIANTS[name]
    check_transformations(lambda seed: make(weight(seed, device)), applied, numbers(2, 3, 8, device=device))


@pytest.mark.parametrize("cls", [layers.ZeroCenteredRMSNorm, layers.GatedRMSNorm, layers.PartialRMSNorm])
def test_init(cls: Any, device: torch.device) -> None:
    """New layers only normalise, on any device and on meta, and carry over to modules."""
    p = cls.init(8, dtype=torch.float64, device=device)
    x = numbers(4, 8, device=device)
    plain = pn.replace(p, share=1.0) if cls is layers.PartialRMSNorm else p
    y = plain(x, torch.full_like(x, 50)) if cls is layers.GatedRMSNorm else plain(x)
    same(y.square().mean(-1), torch.ones(4, dtype=torch.float64, device=device), tolerance=1e-4)
    assert p.normalized_shape == (8,)
    assert repr(p) == f"{cls.__name__}((8,), eps=1e-06)"
    assert cls.init((2, 3), device="meta").weight.shape == (2, 3)
    module = bridge.to_module(p)
    assert list(module.state_dict()) == ["weight"]
    inputs = (x, x) if cls is layers.GatedRMSNorm else (x,)
    same(module(*inputs), p(*inputs), tolerance=0)


def test_errors(device: torch.device) -> None:
    """Sizes that do not fit, gates of another shape and shares out of range are refused."""
    x = torch.zeros(2, 5, device=device)
    with pytest.raises(ShapeError) as error:
        layers.zero_centered_rms_norm(layers.ZeroCenteredRMSNorm.init(4, device=device), x)
    assert str(error.value) == (
        "zero_centered_rms_norm: expected an input whose last dimensions are [4], got shape [2, 5]. Move those "
        "dimensions last, or init the layer with other sizes."
    )
    with pytest.raises(ShapeError) as error:
        layers.gated_rms_norm(layers.GatedRMSNorm.init(5, device=device), x, x[:1])
    assert str(error.value) == "gated_rms_norm: x and gate must have the same shape, got [2, 5] and [1, 5]."
    with pytest.raises(ArgumentError) as error:
        layers.PartialRMSNorm(torch.ones(5, device=device), share=0.0)
    assert str(error.value) == "PartialRMSNorm: share must be above 0 and at most 1, got 0.0."
