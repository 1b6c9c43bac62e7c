"""Binary cross entropies: equal to torch's, under every transformation, also where weights are learned."""

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

NAMES = ["binary_cross_entropy", "binary_cross_entropy_with_logits", "multi_label_soft_margin_loss"]


def fractions(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """Numbers strictly between 0 and 1."""
    return numbers(*shape, seed=seed, device=device).sigmoid()


@given(shape=SHAPES, reduction=REDUCTIONS, weighted=st.booleans(), seed=SEEDS)
def test_probabilities_equal_torch(
    shape: tuple[int, ...], reduction: Any, weighted: bool, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's, also at the probabilities 0 and 1, where logarithms end at -100."""
    options = {"reduction": reduction, "weight": fractions(*shape[-1:], device=device) if weighted else None}
    x, y = fractions(*shape, seed=seed, device=device), fractions(*shape, seed=seed + 1, device=device)
    check_equals(
        lambda *z: losses.binary_cross_entropy(*z, **options), lambda *z: F.binary_cross_entropy(*z, **options), x, y
    )
    x, y = x.round(), y.round()
    check_equals(
        lambda x: losses.binary_cross_entropy(x, y, **options),
        lambda x: F.binary_cross_entropy(x, y, **options),
        x,
        second_order=False,
    )


@given(shape=SHAPES, reduction=REDUCTIONS, weighted=st.booleans(), pos_weighted=st.booleans(), seed=SEEDS)
def test_logits_equal_torch(
    shape: tuple[int, ...], reduction: Any, weighted: bool, pos_weighted: bool, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's with both kinds of weights; the formula, which torch.func uses, agrees."""
    options = {
        "reduction": reduction,
        "weight": fractions(*shape[-1:], device=device) if weighted else None,
        "pos_weight": 3 * fractions(*shape[-1:], seed=5, device=device) if pos_weighted else None,
    }
    x, y = 9 * numbers(*shape, seed=seed, device=device), fractions(*shape, seed=seed + 1, device=device)
    ours, theirs = losses.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
    check_equals(lambda *z: ours(*z, **options), lambda *z: theirs(*z, **options), x, y)
    found = torch.func.grad(lambda x: ours(x, y, **options).sum())(x)
    x.requires_grad_()
    same(found, torch.autograd.grad(theirs(x, y, **options).sum(), x)[0], tolerance=1e-12)


@given(
    shape=st.sampled_from([(4,), (0, 3), (2, 3), (2, 3, 4)]), reduction=REDUCTIONS, weighted=st.booleans(), seed=SEEDS
)
def test_multi_label_equals_torch(
    shape: tuple[int, ...], reduction: Any, weighted: bool, seed: int, device: torch.device
) -> None:
    """Value and derivatives are torch's."""
    options = {"reduction": reduction, "weight": fractions(*shape[-1:], device=device) if weighted else None}
    x, y = numbers(*shape, seed=seed, device=device), fractions(*shape, seed=seed + 1, device=device)
    ours, theirs = losses.multi_label_soft_margin_loss, F.multilabel_soft_margin_loss
    check_equals(lambda *z: ours(*z, **options), lambda *z: theirs(*z, **options), x, y)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("name", NAMES)
def test_whole_targets(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Targets may be whole numbers or booleans, and any strides will do."""
    x = fractions(3, 4, device=device).T
    target = torch.tensor([1, 0, 1], device=device).expand(4, 3)
    loss = getattr(losses, name)
    same(loss(x, target.to(dtype)), loss(x.contiguous(), target.double().contiguous()), tolerance=1e-15)


@pytest.mark.parametrize("weights", [0, 1, 2])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_transformations(name: str, reduction: str, weights: int, device: torch.device) -> None:
    """Batching, derivatives of all kinds (weights are differentiated too), tracing and half precision."""
    names = ["weight", "pos_weight"] if name == "binary_cross_entropy_with_logits" else ["weight"]
    loss = getattr(losses, name)
    case = Case(
        lambda x, y, *w: loss(x, y, reduction=reduction, **dict(zip(names, w, strict=False))),
        fractions(3, 4, 2),
        lambda seed: (
            fractions(4, 2, seed=seed + 1),
            *(fractions(2, seed=seed + i + 2) for i in range(min(weights, len(names)))),
        ),
    )
    check_case(case, device, compile=reduction == "mean" and weights == 2)


def test_learned_weights(device: torch.device) -> None:
    """In plain autograd, too, weights may require a gradient, for which torch's kernels have no rule."""
    x, y = fractions(4, 3, device=device), fractions(4, 3, seed=1, device=device)
    w = fractions(3, seed=2, device=device).requires_grad_()
    for loss in (losses.binary_cross_entropy, losses.binary_cross_entropy_with_logits):
        each = loss(x, y, reduction="none").mean(0)
        same(torch.autograd.grad(loss(x, y, weight=w), w)[0], each / 3)
    value = losses.binary_cross_entropy_with_logits(x, y, pos_weight=w)
    same(torch.autograd.grad(value, w)[0], (-y * F.logsigmoid(x)).mean(0) / 3)


def test_containers(device: torch.device) -> None:
    """The container of each class of torch.nn has its options, defaults and value; its weights are buffers."""
    x, y = fractions(2, 3, device=device), fractions(2, 3, seed=1, device=device)
    weight, pos_weight = fractions(3, seed=2, device=device), fractions(3, seed=3, device=device)
    check_container("BCELoss", x, y, weight=weight, reduction="sum")
    check_container("BCEWithLogitsLoss", x, y, weight=weight, pos_weight=pos_weight, reduction="none")
    check_container("BCEWithLogitsLoss", x, y, pos_weight=pos_weight)
    check_container("MultiLabelSoftMarginLoss", x, y, weight=weight, reduction="none")


@pytest.mark.parametrize("name", NAMES)
def test_errors(name: str) -> None:
    """Shapes of targets and weights, and reductions, are checked."""
    loss = getattr(losses, name)
    with pytest.raises(ShapeError) as error:
        loss(torch.zeros(4, 1), torch.zeros(4))
    assert str(error.value) == (
        f"{name}: prediction and target must have the same shape, got [4, 1] and [4]. Reshape them, so that no element "
        f"is compared with those of other examples by broadcasting."
    )
    x = torch.zeros(4, 1)
    with pytest.raises(ShapeError) as error:
        loss(x, x, weight=torch.ones(4))
    assert str(error.value) == (
        f"{name}: weight must broadcast to the shape of the prediction, [4, 1], got [4]. Give one for each class (the "
        f"last dimension), or one for each element."
    )
    with pytest.raises(ArgumentError) as reduction:
        loss(x, x, reduction="average")
    assert str(reduction.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."


def test_errors_of_one_loss() -> None:
    """The weight of positives must broadcast to the prediction; several labels need a dimension of classes."""
    x = torch.zeros(4, 1)
    with pytest.raises(ShapeError) as error:
        losses.binary_cross_entropy_with_logits(x, x, pos_weight=torch.ones(2, 4, 1))
    assert str(error.value) == (
        "binary_cross_entropy_with_logits: pos_weight must broadcast to the shape of the prediction, [4, 1], got "
        "[2, 4, 1]. Give one for each class (the last dimension), or one for each element."
    )
    with pytest.raises(ShapeError) as error:
        losses.multi_label_soft_margin_loss(torch.zeros(()), torch.zeros(()))
    assert str(error.value) == (
        "multi_label_soft_margin_loss: the prediction must be [..., classes], got a single number."
    )
