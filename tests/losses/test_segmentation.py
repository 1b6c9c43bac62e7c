"""Dice and focal loss against their formulas, at saturated logits, and under every transformation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _losses import REDUCTIONS, SEEDS, Case, check_case, check_equals
from _reference import numbers, same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import bridge
from purenn import losses
from purenn.errors import ArgumentError, ShapeError


def masks(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """0 and 1."""
    return (numbers(*shape, seed=seed, device=device) > 0).double()


def classes(*shape: int, seed: int = 0) -> Tensor:
    """Class indices."""
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))


@given(smooth=st.sampled_from([0.5, 1.0]), seed=SEEDS)
def test_row_40_dice_is_its_formula(smooth: float, seed: int, device: torch.device) -> None:
    """It is one overlap for the whole batch, or the mean of the examples' own."""
    x, y = numbers(3, 1, 2, 2, seed=seed, device=device), masks(3, 1, 2, 2, seed=seed + 1, device=device)

    def one(x: Tensor, y: Tensor) -> Tensor:
        inside = x.sigmoid().reshape(-1)
        flat = y.reshape(-1)
        return 1 - (2 * (inside * flat).sum() + smooth) / (inside.sum() + flat.sum() + smooth)

    check_equals(lambda x: losses.dice_loss(x, y, smooth=smooth), lambda x: one(x, y), x)
    mean = torch.stack([one(*pair) for pair in zip(x, y, strict=True)]).mean()
    same(losses.dice_loss(x, y, smooth=smooth, per_sample=True), mean, tolerance=1e-12)
    vmapped = torch.func.vmap(lambda x, y: losses.dice_loss(x, y, smooth=smooth))(x, y).mean()
    same(vmapped, mean, tolerance=1e-12)
    turned, whole = x.permute(0, 3, 2, 1), y.permute(0, 3, 2, 1).bool()
    same(losses.dice_loss(turned, whole, smooth=smooth), one(x, y), tolerance=1e-12)


def test_dice_of_nothing(device: torch.device) -> None:
    """No region, and none found, cost almost nothing."""
    x = torch.full((2, 3), -50.0, dtype=torch.float64, device=device)
    same(losses.dice_loss(x, torch.zeros_like(x)), torch.zeros((), dtype=torch.float64, device=device))


@given(
    shape=st.sampled_from([(), (4,), (0, 3), (2, 3, 2)]),
    alpha=st.sampled_from([0.25, 0.6, None]),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
    reduction=REDUCTIONS,
    seed=SEEDS,
)
def test_row_41_focal_of_yes_or_no(
    shape: tuple[int, ...], alpha: float | None, gamma: float, reduction: Any, seed: int, device: torch.device
) -> None:
    """It is the paper's formula, and with gamma 0 and no alpha the binary cross entropy."""
    x, y = numbers(*shape, seed=seed, device=device), masks(*shape, seed=seed + 1, device=device)

    def formula(x: Tensor) -> Tensor:
        p = torch.where(y == 1, x.sigmoid(), (-x).sigmoid())
        factor = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
        each = -factor * (1 - p) ** gamma * p.log()
        return each if reduction == "none" else getattr(each, reduction)()

    options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
    check_equals(lambda x: losses.focal_loss(x, y, **options), formula, x)
    same(losses.focal_loss(x, y.bool(), **options), losses.focal_loss(x, y, **options), tolerance=0)
    soft = losses.focal_loss(x, y / 2, alpha=None, gamma=0, reduction=reduction)
    same(soft, F.binary_cross_entropy_with_logits(x, y / 2, reduction=reduction), tolerance=1e-12)


@given(
    shape=st.sampled_from([(4,), (3, 4), (0, 4), (2, 4, 3)]),
    kind=st.sampled_from(["classes", "number", "none"]),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
    reduction=REDUCTIONS,
    seed=SEEDS,
)
def test_row_41_focal_of_classes(
    shape: tuple[int, ...], kind: str, gamma: float, reduction: Any, seed: int, device: torch.device
) -> None:
    """It is the cross entropy of each example, times alpha of its class and the power, and never negative."""
    axis = min(1, len(shape) - 1)
    x = numbers(*shape, seed=seed, device=device)
    target = classes(*shape[:axis], *shape[axis + 1 :], seed=seed).to(device)
    alpha = {"classes": numbers(4, seed=seed, device=device).abs(), "number": 0.4, "none": None}[kind]

    def formula(x: Tensor) -> Tensor:
        entropy = F.cross_entropy(x, target, reduction="none")
        factor = 1 if alpha is None else alpha[target] if isinstance(alpha, Tensor) else alpha
        each = factor * (1 - (-entropy).exp()) ** gamma * entropy
        return each if reduction == "none" else getattr(each, reduction)()

    def ours(x: Tensor) -> Tensor:
        return losses.focal_loss(x, target, alpha=alpha, gamma=gamma, reduction=reduction)

    check_equals(ours, formula, x, tolerance=1e-11)
    assert (losses.focal_loss(x, target, alpha=alpha, gamma=gamma, reduction="none") >= 0).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_row_41_focal_at_saturation(gamma: float, device: torch.device) -> None:
    """At p = 1 and p = 0, to the last digit, value, gradient and curvature are finite."""
    for size in (40.0, 1000.0):
        x = torch.tensor([size, -size], dtype=torch.float64, device=device)
        yes, right = torch.tensor([1.0, 0.0], dtype=torch.float64, device=device), torch.tensor(0, device=device)
        wrong = torch.tensor(1, device=device)
        for target, expected in ((yes, 0.0), (1 - yes, size), (right, 0.0), (wrong, 2 * size)):

            def loss(x: Tensor, target: Tensor = target) -> Tensor:
                return losses.focal_loss(x, target, alpha=None, gamma=gamma)

            assert abs(loss(x).item() - expected) < 1e-8
            for derivative in (torch.func.grad(loss), torch.func.hessian(loss)):
                assert derivative(x).isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["binary", "classes", "class", "images"])
def test_transformations_of_focal_loss(name: str, reduction: Any, device: torch.device) -> None:
    """Batching, derivatives of all kinds (alpha is differentiated too), tracing and half precision."""
    shape = {"binary": (3, 2), "classes": (3, 4), "class": (4,), "images": (2, 4, 3)}[name]
    axis = min(1, len(shape) - 1)

    def rest(seed: int) -> tuple[Tensor, ...]:
        if name == "binary":
            return (masks(*shape, seed=seed),)
        return classes(*shape[:axis], *shape[axis + 1 :], seed=seed), numbers(4, seed=seed).abs()

    def loss(x: Tensor, target: Tensor, *alpha: Tensor) -> Tensor:
        options = {"alpha": alpha[0]} if alpha else {}
        return losses.focal_loss(x, target, gamma=0.5, reduction=reduction, **options)

    check_case(Case(loss, numbers(3, *shape), rest), device, compile=reduction == "mean" and name != "class")


@pytest.mark.parametrize("per_sample", [False, True])
def test_transformations_of_dice_loss(per_sample: bool, device: torch.device) -> None:
    """Batching, derivatives of all kinds, tracing and half precision."""
    case = Case(
        lambda x, y: losses.dice_loss(x, y, per_sample=per_sample),
        numbers(3, 2, 4),
        lambda seed: (masks(2, 4, seed=seed) + 0.1,),
    )
    check_case(case, device, compile=per_sample)


def test_containers(device: torch.device) -> None:
    """They hold the options, and run as modules; the factors of the focal loss are a buffer."""
    x, y, target = numbers(3, 4, device=device), masks(3, 4, device=device), classes(3).to(device)
    dice = losses.DiceLoss(smooth=2.0, per_sample=True)
    same(dice(x, y), losses.dice_loss(x, y, smooth=2.0, per_sample=True), tolerance=0)
    same(bridge.to_module(dice)(x, y), dice(x, y), tolerance=0)
    alpha = numbers(4, device=device).abs()
    for p, expected in (
        (losses.FocalLoss(), losses.focal_loss(x, target)),
        (losses.FocalLoss(0.3, 1.0, "sum"), losses.focal_loss(x, target, alpha=0.3, gamma=1.0, reduction="sum")),
        (losses.FocalLoss(alpha), losses.focal_loss(x, target, alpha=alpha)),
        (losses.FocalLoss(None), losses.focal_loss(x, target, alpha=None)),
    ):
        same(p(x, target), expected, tolerance=1e-15)
        same(bridge.to_module(p)(x, target), expected, tolerance=1e-15)
    assert losses.FocalLoss()(x.float(), y).dtype == torch.float64
    assert losses.FocalLoss()(x.float(), y.float()).dtype == torch.float32


def test_errors() -> None:
    """Shapes, gamma and the reduction are checked."""
    x = torch.zeros(3, 4)
    with pytest.raises(ShapeError) as error:
        losses.dice_loss(x, x[0])
    assert str(error.value) == (
        "dice_loss: prediction and target must have the same shape, got [3, 4] and [4]. Reshape them, so that no "
        "element is compared with those of other examples by broadcasting."
    )
    with pytest.raises(ShapeError) as error:
        losses.dice_loss(x[0], x[0], per_sample=True)
    assert str(error.value) == (
        "dice_loss: per_sample=True needs a batch of examples, at least 2 dimensions, got shape [4]. For a single "
        "example leave it out."
    )
    for target in (torch.zeros(4, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ShapeError) as error:
            losses.focal_loss(x, target)
        assert str(error.value) == (
            f"focal_loss: for logits of shape [3, 4] the target must have the same shape (a yes or no for each) or be "
            f"class indices, whole numbers of shape [3]; got {target.dtype} of shape {list(target.shape)}."
        )
    with pytest.raises(ShapeError) as error:
        losses.focal_loss(x, x, alpha=torch.ones(4))
    assert str(error.value) == (
        "focal_loss: the target has the shape of the logits, so alpha must be a number, the factor of 1; got shape "
        "[4]. One factor for each class goes with class indices as the target."
    )
    with pytest.raises(ShapeError) as error:
        losses.focal_loss(x, torch.zeros(3, dtype=torch.int64), alpha=torch.ones(3))
    assert str(error.value) == (
        "focal_loss: alpha must be a number or hold one for each of the 4 classes, shape [4], got [3]."
    )
    with pytest.raises(ArgumentError) as value:
        losses.focal_loss(x, x, gamma=-1.0)
    assert str(value.value) == "focal_loss: gamma must not be negative, got -1.0."
    with pytest.raises(ArgumentError) as value:
        losses.focal_loss(x, x, reduction="average")
    assert str(value.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
