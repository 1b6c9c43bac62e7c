"""Losses of numbers: equal to torch's, under every transformation, and strict about shapes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _losses import REDUCTIONS, SEEDS, SHAPES, Case, check_case, check_container, check_equals
from _reference import numbers, same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from purenn import losses
from purenn.errors import ArgumentError, ShapeError

LOSSES: dict[str, dict[str, st.SearchStrategy]] = {
    "l1_loss": {},
    "mse_loss": {},
    "smooth_l1_loss": {"beta": st.sampled_from([0.0, 0.3, 1.0])},
    "huber_loss": {"delta": st.sampled_from([0.3, 1.0])},
}
OPTIONS: dict[str, dict[str, float]] = {"smooth_l1_loss": {"beta": 0.7}, "huber_loss": {"delta": 0.7}}


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data(), shape=SHAPES, reduction=REDUCTIONS, seed=SEEDS)
def test_equals_torch(
    name: str, data: st.DataObject, shape: tuple[int, ...], reduction: Any, seed: int, device: torch.device
) -> None:
    """Value, gradients and second derivatives are torch's, also where prediction and target are equal."""
    options = {"reduction": reduction} | {key: data.draw(values) for key, values in LOSSES[name].items()}
    ours, theirs = getattr(losses, name), getattr(F, name)
    prediction, target = numbers(*shape, seed=seed, device=device), numbers(*shape, seed=seed + 1, device=device)
    target = torch.where(target < -0.5, prediction, target)
    check_equals(lambda *x: ours(*x, **options), lambda *x: theirs(*x, **options), prediction, target)


@pytest.mark.parametrize("name", LOSSES)
def test_strides_do_not_matter(name: str, device: torch.device) -> None:
    """Transposed and expanded inputs give what contiguous ones do."""
    ours = getattr(losses, name)
    prediction, target = numbers(3, 4, device=device).T, numbers(4, 1, seed=1, device=device).expand(4, 3)
    same(ours(prediction, target), ours(prediction.contiguous(), target.contiguous()), tolerance=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_transformations(name: str, reduction: str, device: torch.device) -> None:
    """Batching, derivatives of all kinds, tracing and half precision."""
    ours, options = getattr(losses, name), OPTIONS.get(name, {}) | {"reduction": reduction}
    case = Case(lambda x, y: ours(x, y, **options), numbers(3, 4, 2), lambda seed: (numbers(4, 2, seed=seed + 1),))
    check_case(case, device, compile=reduction == "mean")


@pytest.mark.parametrize("name", ["smooth_l1_loss", "huber_loss"])
def test_plain_formula_at_kinks(name: str, device: torch.device) -> None:
    """Under vmap, gradients at 0, at the joints and at infinity, and the curvature at 0, are torch's."""
    ours, theirs = getattr(losses, name), getattr(F, name)
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e300, torch.inf, -torch.inf], dtype=torch.float64, device=device)
    zero = torch.zeros_like(x)
    found = torch.func.vmap(torch.func.grad(ours))(x, zero)
    x.requires_grad_()
    same(found, torch.autograd.grad(theirs(x, zero, reduction="sum"), x)[0], tolerance=0)
    curvature = torch.func.grad(torch.func.grad(ours))
    same(curvature(zero[0], zero[0]), torch.ones((), dtype=torch.float64, device=device), tolerance=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights(reduction: Any, device: torch.device) -> None:
    """Weights scale the elements; the mean is weighted for l1 and mse, and plain for huber."""
    x, y, w = (numbers(2, 3, seed=seed, device=device) for seed in range(3))
    w = w.abs()

    def weighted(each: Tensor) -> Tensor:
        return {"mean": (each * w).sum() / w.sum(), "sum": (each * w).sum(), "none": each * w}[reduction]

    same(losses.l1_loss(x, y, weight=w, reduction=reduction), weighted((x - y).abs()))
    same(losses.mse_loss(x, y, weight=w, reduction=reduction), weighted((x - y) ** 2))
    each = F.huber_loss(x, y, reduction="none") * w
    expected = each if reduction == "none" else getattr(each, reduction)()
    same(losses.huber_loss(x, y, weight=w, reduction=reduction), expected)
    case = Case(
        lambda x, y, w: losses.mse_loss(x, y, weight=w.abs(), reduction=reduction),
        numbers(3, 4),
        lambda seed: (numbers(4, seed=seed + 1), numbers(4, seed=seed + 2)),
    )
    check_case(case, device)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("L1Loss", {"reduction": "sum"}),
        ("MSELoss", {"reduction": "none"}),
        ("SmoothL1Loss", {"beta": 0.5}),
        ("HuberLoss", {"delta": 0.5, "reduction": "sum"}),
    ],
)
def test_containers(name: str, options: dict[str, Any], device: torch.device) -> None:
    """The container of each class of torch.nn has its options, defaults and value."""
    check_container(name, numbers(2, 3, device=device), numbers(2, 3, seed=1, device=device), **options)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_must_agree(name: str, device: torch.device) -> None:
    """A column against a row is an error."""
    with pytest.raises(ShapeError) as error:
        getattr(losses, name)(torch.zeros(4, 1, device=device), torch.zeros(4, device=device))
    assert str(error.value) == (
        f"{name}: prediction and target must have the same shape, got [4, 1] and [4]. Reshape them, so that no element "
        f"is compared with those of other examples by broadcasting."
    )


def test_errors() -> None:
    """Reductions, ranges and the shape of weights are checked."""
    x = torch.zeros(2, 3)
    for name in LOSSES:
        with pytest.raises(ArgumentError) as error:
            getattr(losses, name)(x, x, reduction="average")
        assert str(error.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
    with pytest.raises(ArgumentError) as error:
        losses.smooth_l1_loss(x, x, beta=-1.0)
    assert str(error.value) == "smooth_l1_loss: beta must not be negative, got -1.0."
    with pytest.raises(ArgumentError) as error:
        losses.huber_loss(x, x, delta=0.0)
    assert str(error.value) == "huber_loss: delta must be positive, got 0.0."
    for name in ("l1_loss", "mse_loss", "huber_loss"):
        with pytest.raises(ShapeError) as error:
            getattr(losses, name)(x, x, weight=torch.ones(3))
        assert str(error.value) == (
            f"{name}: prediction and weight must have the same shape, got [2, 3] and [3]. Reshape them, so that no "
            f"element is compared with those of other examples by broadcasting."
        )
