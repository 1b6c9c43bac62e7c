"""Losses of order and distance: equal to torch's, and batchable, which torch's are not."""

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

ROWS = st.sampled_from([(4,), (0, 3), (2, 3)])


def three(shape: tuple[int, ...], seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors of normal numbers."""
    first, second, third = (numbers(*shape, seed=3 * seed + i, device=device) for i in range(3))
    return first, second, third


@given(shape=SHAPES, reduction=REDUCTIONS, margin=st.sampled_from([0.0, 0.5]), seed=SEEDS)
def test_margin_ranking_equals_torch(
    shape: tuple[int, ...], reduction: Any, margin: float, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's, also for two inputs that are equal."""
    first, second, sign = three(shape, seed, device)
    second = torch.where(second > 0.5, first, second)
    options = {"margin": margin, "reduction": reduction}
    check_equals(
        lambda *x: losses.margin_ranking_loss(*x, sign.sign(), **options),
        lambda *x: F.margin_ranking_loss(*x, sign.sign(), **options),
        first,
        second,
    )


@given(shape=ROWS, reduction=REDUCTIONS, margin=st.sampled_from([0.0, 0.3]), seed=SEEDS)
def test_cosine_embedding_equals_torch(
    shape: tuple[int, ...], reduction: Any, margin: float, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's, also for vectors of zeros."""
    first, second, _ = three(shape, seed, device)
    first = first * (first.sum(-1, keepdim=True) > -1)
    sign = numbers(*shape[:-1], seed=seed, device=device).sign()
    options = {"margin": margin, "reduction": reduction}
    check_equals(
        lambda *x: losses.cosine_embedding_loss(*x, sign, **options),
        lambda *x: F.cosine_embedding_loss(*x, sign, **options),
        first,
        second,
        tolerance=1e-10,
    )


@given(
    shape=st.sampled_from([(4,), (0, 3), (2, 3), (2, 2, 3)]),
    reduction=REDUCTIONS,
    p=st.sampled_from([1.0, 2.0, 3.0]),
    margin=st.sampled_from([0.5, 2.0]),
    swap=st.booleans(),
    seed=SEEDS,
)
def test_triplet_equals_torch(
    shape: tuple[int, ...], reduction: Any, p: float, margin: float, swap: bool, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's for every option, also with a distance of one's own."""
    options = {"margin": margin, "swap": swap, "reduction": reduction}
    inputs = three(shape, seed, device)
    check_equals(
        lambda *x: losses.triplet_margin_loss(*x, p=p, **options),
        lambda *x: F.triplet_margin_loss(*x, p=p, **options),
        *inputs,
    )
    for distance in (None, _squared):
        options["distance_function"] = distance
        check_equals(
            lambda *x: losses.triplet_margin_with_distance_loss(*x, **options),
            lambda *x: F.triplet_margin_with_distance_loss(*x, **options),
            *inputs,
        )


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1)


def test_equal_points(device: torch.device) -> None:
    """An anchor that is its own positive has torch's gradient, which is finite."""
    a, n, _ = three((2, 3), 0, device)
    check_equals(
        lambda a, n: losses.triplet_margin_loss(a, a.detach(), n),
        lambda a, n: F.triplet_margin_loss(a, a.detach(), n),
        a,
        n,
        tolerance=1e-9,
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["ranking", "cosine", "triplet", "swap", "distance"])
@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_transformations(name: str, shape: tuple[int, ...], reduction: Any, device: torch.device) -> None:
    """Batching, derivatives of all kinds, tracing and half precision."""
    options = {"reduction": reduction}
    both = {"margin": 2.0, "swap": True, **options}
    calls: dict[str, Any] = {
        "ranking": lambda x, y, s: losses.margin_ranking_loss(x, y, s.sign(), margin=0.3, **options),
        "cosine": lambda x, y, s: losses.cosine_embedding_loss(x, y, s.sum(-1).sign(), margin=-0.5, **options),
        "triplet": lambda x, y, z: losses.triplet_margin_loss(x, y, z, **options),
        "swap": lambda x, y, z: losses.triplet_margin_loss(x, y, z, p=3.0, **both),
        "distance": lambda x, y, z: losses.triplet_margin_with_distance_loss(
            x, y, z, distance_function=_squared, **both
        ),
    }
    case = Case(
        calls[name],
        numbers(3, *shape),
        lambda seed: (numbers(*shape, seed=seed + 5), 2 * numbers(*shape, seed=seed + 9)),
    )
    check_case(case, device, compile=reduction == "mean" and len(shape) == 2)


def test_containers(device: torch.device) -> None:
    """The container of each class of torch.nn has its options, defaults and value."""
    first, second, third = three((4, 3), 0, device)
    check_container("MarginRankingLoss", first, second, third.sign(), margin=0.5, reduction="none")
    check_container("CosineEmbeddingLoss", first, second, third[:, 0].sign(), margin=0.1, reduction="sum")
    check_container("TripletMarginLoss", first, second, third, margin=2.0, p=1.0, eps=0.1, swap=True, reduction="sum")
    name = "TripletMarginWithDistanceLoss"
    check_container(name, first, second, third, distance_function=_squared, margin=2.0, swap=True, reduction="none")
    same(losses.TripletMarginWithDistanceLoss()(first, second, third), F.triplet_margin_loss(first, second, third))


@pytest.mark.parametrize("name", ["margin_ranking_loss", "cosine_embedding_loss", "triplet_margin_loss"])
def test_shapes_must_agree(name: str) -> None:
    """Inputs that torch would broadcast are refused."""
    with pytest.raises(ShapeError) as error:
        getattr(losses, name)(torch.zeros(4, 1), torch.zeros(4, 3), torch.zeros(4, 3))
    names, shapes = {
        "margin_ranking_loss": ("first, second and target", "[4, 1], [4, 3] and [4, 3]"),
        "cosine_embedding_loss": ("first and second", "[4, 1] and [4, 3]"),
        "triplet_margin_loss": ("anchor, positive and negative", "[4, 1], [4, 3] and [4, 3]"),
    }[name]
    assert str(error.value) == (
        f"{name}: {names} must have the same shape, got {shapes}. Reshape them, so that no element is compared with "
        f"those of other examples by broadcasting."
    )


def test_errors() -> None:
    """Targets, dimensions, margins and reductions are checked."""
    x = torch.zeros(4, 3)
    with pytest.raises(ShapeError) as error:
        losses.cosine_embedding_loss(x, x, torch.ones(4, 1))
    assert str(error.value) == (
        "cosine_embedding_loss: expected inputs [batch, features] with a target [batch], or [features] with a target "
        "[], got [4, 3] and [4, 1]."
    )
    with pytest.raises(ShapeError) as error:
        losses.triplet_margin_with_distance_loss(x, x, x[0])
    assert str(error.value) == (
        "triplet_margin_with_distance_loss: anchor, positive and negative must have as many dimensions, got shapes "
        "[4, 3], [4, 3] and [3]."
    )
    for name in ("triplet_margin_loss", "triplet_margin_with_distance_loss"):
        with pytest.raises(ArgumentError) as value:
            getattr(losses, name)(x, x, x, margin=0.0)
        assert str(value.value) == f"{name}: margin must be positive, got 0.0."
    for name in ("margin_ranking_loss", "triplet_margin_loss", "triplet_margin_with_distance_loss"):
        with pytest.raises(ArgumentError) as value:
            getattr(losses, name)(x, x, x, reduction="average")
        assert str(value.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
