"""Likelihoods: equal to torch's, under every transformation, and with gradients where torch has none."""

import math
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


def positive(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """Numbers between 0.1 and about 3."""
    return numbers(*shape, seed=seed, device=device).abs() + 0.1


@given(shape=SHAPES, reduction=REDUCTIONS, log_input=st.booleans(), full=st.booleans(), seed=SEEDS)
def test_poisson_equals_torch(
    shape: tuple[int, ...], reduction: Any, log_input: bool, full: bool, seed: int, device: torch.device
) -> None:
    """Value, gradients and second derivatives are torch's for both kinds of prediction."""
    options = {"reduction": reduction, "log_input": log_input, "full": full}
    check_equals(
        lambda *x: losses.poisson_nll_loss(*x, **options),
        lambda *x: F.poisson_nll_loss(*x, **options),
        positive(*shape, seed=seed, device=device),
        2 * positive(*shape, seed=seed + 1, device=device),
    )


def test_poisson_counts_of_zero(device: torch.device) -> None:
    """With the full likelihood, counts of 0 and 1 have torch's loss and a finite gradient."""
    x = numbers(3, device=device)
    counts = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64, device=device)
    same(losses.poisson_nll_loss(x, counts, full=True), F.poisson_nll_loss(x, counts, full=True))
    gradient = torch.func.grad(losses.poisson_nll_loss, argnums=1)(x, counts, full=True)
    same(gradient[:2], -x[:2] / 3)


@given(
    shape=st.sampled_from([(4,), (0, 3), (2, 3), (2, 3, 4)]),
    kind=st.sampled_from(["full", "without", "one", "number"]),
    reduction=REDUCTIONS,
    full=st.booleans(),
    seed=SEEDS,
)
def test_gaussian_equals_torch(
    shape: tuple[int, ...], kind: str, reduction: Any, full: bool, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's for every form of variance, also for variances below eps."""
    options = {"reduction": reduction, "full": full, "eps": 0.4}
    x, y = numbers(*shape, seed=seed, device=device), numbers(*shape, seed=seed + 1, device=device)
    if kind == "number":
        check_equals(
            lambda *z: losses.gaussian_nll_loss(*z, 0.7, **options),
            lambda *z: F.gaussian_nll_loss(*z, 0.7, **options),
            x,
            y,
        )
        return
    shapes = {"full": shape, "without": shape[:-1], "one": (*shape[:-1], 1)}
    variance = positive(*shapes[kind], seed=seed + 2, device=device)
    check_equals(
        lambda *z: losses.gaussian_nll_loss(*z, **options),
        lambda *z: F.gaussian_nll_loss(*z, **options),
        x,
        y,
        variance,
    )


@given(shape=SHAPES, reduction=st.sampled_from(["mean", "batchmean", "sum", "none"]), log=st.booleans(), seed=SEEDS)
def test_kl_div_equals_torch(
    shape: tuple[int, ...], reduction: Any, log: bool, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's for probabilities and their logarithms, without torch's warning."""
    x, y = numbers(*shape, seed=seed, device=device), positive(*shape, seed=seed + 1, device=device)

    def theirs(x: Tensor, y: Tensor) -> Tensor:
        if reduction == "mean":
            return F.kl_div(x, y, reduction="none", log_target=log).mean()
        return F.kl_div(x, y, reduction=reduction, log_target=log)

    check_equals(lambda x, y: losses.kl_div(x, y, reduction=reduction, log_target=log), theirs, x, y)


def test_kl_div_of_zero(device: torch.device) -> None:
    """A probability of 0 contributes nothing."""
    x = torch.tensor([math.log(0.5), math.log(0.5)], dtype=torch.float64, device=device)
    certain = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    same(losses.kl_div(x, certain, reduction="sum"), torch.tensor(math.log(2), dtype=torch.float64, device=device))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("poisson_nll_loss", {"full": True}),
        ("poisson_nll_loss", {"log_input": False}),
        ("gaussian_nll_loss", {"full": True, "eps": 0.3}),
        ("kl_div", {}),
        ("kl_div", {"log_target": True}),
    ],
)
def test_transformations(name: str, options: dict[str, Any], reduction: str, device: torch.device) -> None:
    """Batching, derivatives of all kinds, tracing and half precision."""
    loss = getattr(losses, name)
    arguments = 2 if name == "gaussian_nll_loss" else 1
    case = Case(
        lambda *x: loss(*x, **options, reduction=reduction),
        positive(3, 4, 2),
        lambda seed: tuple(positive(4, 2, seed=seed + 1 + 3 * i) for i in range(arguments)),
    )
    check_case(case, device, compile=reduction == "mean")


def test_containers(device: torch.device) -> None:
    """The container of each class of torch.nn has its options, defaults and value."""
    x, y, z = (positive(2, 3, seed=seed, device=device) for seed in range(3))
    check_container("PoissonNLLLoss", x, y, log_input=False, full=True, eps=0.1, reduction="sum")
    check_container("GaussianNLLLoss", x, y, z, full=True, eps=0.5, reduction="none")
    check_container("KLDivLoss", x, y, reduction="batchmean", log_target=True)


@pytest.mark.parametrize("name", ["poisson_nll_loss", "kl_div", "gaussian_nll_loss"])
def test_shapes_must_agree(name: str) -> None:
    """A column against a row is an error."""
    arguments = (torch.ones(4, 1), torch.ones(4), *([1.0] if name == "gaussian_nll_loss" else []))
    with pytest.raises(ShapeError) as error:
        getattr(losses, name)(*arguments)
    assert str(error.value) == (
        f"{name}: prediction and target must have the same shape, got [4, 1] and [4]. Reshape them, so that no element "
        f"is compared with those of other examples by broadcasting."
    )


def test_errors() -> None:
    """Variances and reductions are checked."""
    x = torch.ones(2, 3)
    with pytest.raises(ArgumentError) as error:
        losses.gaussian_nll_loss(x, x, -1.0)
    assert str(error.value) == "gaussian_nll_loss: var must not be negative, got -1.0."
    with pytest.raises(ShapeError) as error:
        losses.gaussian_nll_loss(x, x, torch.ones(3))
    assert str(error.value) == (
        "gaussian_nll_loss: var must have the shape of the prediction, [2, 3], the same with size 1 in some "
        "dimensions, or the same without the last dimension; got [3]."
    )
    with pytest.raises(ArgumentError) as error:
        losses.kl_div(x, x, reduction="average")
    assert str(error.value) == "reduction must be 'mean', 'batchmean', 'sum' or 'none', got 'average'."
    for loss in (losses.poisson_nll_loss, lambda x, y, **options: losses.gaussian_nll_loss(x, y, 1.0, **options)):
        with pytest.raises(ArgumentError) as error:
            loss(x, x, reduction="average")
        assert str(error.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
