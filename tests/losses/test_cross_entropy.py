"""Cross entropy in all its forms: equal to torch's, under every transformation, also where weights are learned."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _losses import REDUCTIONS, SEEDS, Case, check_case, check_container, check_equals
from _reference import numbers, same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from purenn import losses
from purenn.errors import ArgumentError, ShapeError

SHAPES = st.sampled_from([(5,), (3, 5), (0, 5), (2, 5, 3), (2, 5, 3, 2), (4, 1)])
SMOOTHING = st.sampled_from([0.0, 0.1, 1.0])


def indices(shape: tuple[int, ...], seed: int = 0, ignore: int | None = None) -> Tensor:
    """Class indices for scores of a shape; about a third of them is the ignored one."""
    axis = min(1, len(shape) - 1)
    generator = torch.Generator().manual_seed(seed)
    size = (*shape[:axis], *shape[axis + 1 :])
    found = torch.randint(shape[axis], size, generator=generator)
    if ignore is None:
        return found
    return torch.where(torch.rand(size, generator=generator) < 0.3, ignore, found)


@given(
    shape=SHAPES,
    reduction=REDUCTIONS,
    smoothing=SMOOTHING,
    weighted=st.booleans(),
    ignore=st.sampled_from([None, -100, 0, 2]),
    seed=SEEDS,
)
def test_indices_equal_torch(
    shape: tuple[int, ...],
    reduction: Any,
    smoothing: float,
    weighted: bool,
    ignore: int | None,
    seed: int,
    device: torch.device,
) -> None:
    """Value and derivatives are torch's for every option; the formula, which torch.func uses, agrees."""
    target = indices(shape, seed, ignore).to(device)
    classes = shape[min(1, len(shape) - 1)]
    weight = numbers(classes, seed=seed, device=device).abs() if weighted else None
    options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    if ignore is not None:
        options["ignore_index"] = ignore
    logits = numbers(*shape, seed=seed + 1, device=device)
    check_equals(
        lambda x: losses.cross_entropy(x, target, **options), lambda x: F.cross_entropy(x, target, **options), logits
    )

    def total(x: Tensor) -> Tensor:
        return losses.cross_entropy(x, target, **options).sum()

    x = logits.clone().requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(x, target, **options).sum(), x)[0]
    same(torch.func.grad(total)(logits), expected, tolerance=1e-12)
    del options["label_smoothing"]
    check_equals(lambda x: losses.nll_loss(x, target, **options), lambda x: F.nll_loss(x, target, **options), logits)


@given(shape=SHAPES, reduction=REDUCTIONS, smoothing=SMOOTHING, weighted=st.booleans(), seed=SEEDS)
def test_probabilities_equal_torch(
    shape: tuple[int, ...], reduction: Any, smoothing: float, weighted: bool, seed: int, device: torch.device
) -> None:
    """Value and derivatives, those with respect to the target too, are torch's."""
    weight = numbers(shape[min(1, len(shape) - 1)], seed=seed, device=device).abs() if weighted else None
    options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    logits, target = numbers(*shape, seed=seed, device=device), numbers(*shape, seed=seed + 1, device=device).abs()
    check_equals(
        lambda *x: losses.cross_entropy(*x, **options), lambda *x: F.cross_entropy(*x, **options), logits, target
    )


@pytest.mark.parametrize("transformed", [False, True])
def test_all_ignored(transformed: bool, device: torch.device) -> None:
    """The mean over no example is NaN, as in torch; the sum is 0 and its gradient is."""
    x, target = numbers(3, 5, device=device), torch.full((3,), -100, device=device)

    def loss(x: Tensor, **options: Any) -> Tensor:
        if transformed:
            return torch.func.vmap(lambda x: losses.cross_entropy(x, target, **options))(x.unsqueeze(0))[0]
        return losses.cross_entropy(x, target, **options)

    assert loss(x).isnan()
    assert loss(x, reduction="sum") == 0
    gradient = torch.func.grad(lambda x: loss(x, reduction="sum"))(x)
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_dtypes_of_indices(dtype: torch.dtype, device: torch.device) -> None:
    """Indices may be any whole numbers, and weights of another dtype than the logits."""
    x, target = numbers(3, 5, device=device), torch.tensor([0, 3, 4], device=device)
    weight = torch.ones(5, device=device)
    same(losses.cross_entropy(x, target.to(dtype), weight=weight), F.cross_entropy(x, target))
    same(losses.nll_loss(x, target.to(dtype), weight=weight), F.nll_loss(x, target))


def test_strides_do_not_matter(device: torch.device) -> None:
    """Images in channels-last order and expanded targets give what contiguous ones do."""
    x = numbers(2, 5, 3, 4, device=device)
    target = indices((1, 5, 3, 4)).to(device).expand(2, 3, 4)
    given = x.to(memory_format=torch.channels_last)
    same(losses.cross_entropy(given, target), losses.cross_entropy(x, target.contiguous()), tolerance=1e-14)
    same(
        torch.func.grad(losses.cross_entropy)(given, target),
        torch.func.grad(losses.cross_entropy)(x, target.contiguous()),
        tolerance=1e-14,
    )


def test_impossible_logits(device: torch.device) -> None:
    """A logit of minus infinity is a probability of 0, and no gradient is NaN, under transformations too."""
    x = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, 0.0, 1.0]], dtype=torch.float64, device=device)
    target = torch.tensor([2, -100], device=device)
    for gradient in (
        torch.func.grad(losses.cross_entropy)(x, target),
        torch.autograd.grad(losses.cross_entropy(x.requires_grad_(), target), x)[0],
    ):
        expected = torch.softmax(x[0].detach(), 0) - torch.tensor([0.0, 0.0, 1.0], device=device)
        same(gradient.detach(), torch.stack((expected, torch.zeros_like(expected))))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 5, 3)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transformations(
    shape: tuple[int, ...], reduction: str, smoothing: float, weighted: bool, device: torch.device
) -> None:
    """Batching, derivatives of all kinds (weights are differentiated too), tracing and half precision."""

    def loss(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return losses.cross_entropy(
            x, target, weight=weight, label_smoothing=smoothing, reduction=reduction, ignore_index=2
        )

    def rest(seed: int) -> tuple[Tensor, ...]:
        # One example at least counts in each.
        target = indices(shape, seed).clamp(max=1 if len(shape) == 1 else 4)
        return target, *([numbers(5, seed=seed).abs()] if weighted else [])

    check_case(
        Case(loss, numbers(3, *shape), rest), device, compile=weighted and reduction == "mean" and shape == (3, 5)
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transformations_of_probabilities(reduction: str, device: torch.device) -> None:
    """Batching, derivatives of all kinds, tracing and half precision, for class probabilities."""
    case = Case(
        lambda x, t, w: losses.cross_entropy(x, t, weight=w, label_smoothing=0.1, reduction=reduction),
        numbers(3, 2, 5, 3),
        lambda seed: (numbers(2, 5, 3, seed=seed).softmax(1), numbers(5, seed=seed).abs()),
    )
    check_case(case, device)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transformations_of_nll(reduction: str, device: torch.device) -> None:
    """Batching, derivatives of all kinds, tracing and half precision, for log probabilities."""
    case = Case(
        lambda x, t, w: losses.nll_loss(x, t, weight=w, reduction=reduction),
        numbers(3, 2, 5, 3),
        lambda seed: (indices((2, 5, 3), seed), numbers(5, seed=seed).abs()),
    )
    check_case(case, device)


def test_containers(device: torch.device) -> None:
    """The container of each class of torch.nn has its options, defaults and value; its weight is a buffer."""
    x, target = numbers(4, 5, device=device), torch.tensor([0, 2, 2, 4], device=device)
    weight = numbers(5, seed=1, device=device).abs()
    options = {"weight": weight, "ignore_index": 2, "reduction": "sum"}
    check_container("CrossEntropyLoss", x, target, **options, label_smoothing=0.2)
    check_container("NLLLoss", x, target, **options)


ERRORS = {
    "class axis": (
        (torch.zeros(4, 5), torch.zeros(4, 1, dtype=torch.int64)),
        "cross_entropy: for a prediction of shape [4, 5] the target must be class indices, whole numbers of shape [4], "
        "or class probabilities, floating point of shape [4, 5]; got torch.int64 of shape [4, 1]. The classes are "
        "dimension 1 of the prediction.",
    ),
    "floating indices": (
        (torch.zeros(4, 5), torch.zeros(4)),
        "cross_entropy: for a prediction of shape [4, 5] the target must be class indices, whole numbers of shape [4], "
        "or class probabilities, floating point of shape [4, 5]; got torch.float32 of shape [4]. Use target.long().",
    ),
    "whole probabilities": (
        (torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.int64)),
        "cross_entropy: for a prediction of shape [4, 5] the target must be class indices, whole numbers of shape [4], "
        "or class probabilities, floating point of shape [4, 5]; got torch.int64 of shape [4, 5]. Use "
        "target.to(prediction.dtype).",
    ),
    "no classes": (
        (torch.zeros(()), torch.zeros((), dtype=torch.int64)),
        "cross_entropy: the prediction must be [batch, classes, ...] or [classes], got a single number.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_shape_errors(name: str) -> None:
    """Targets of the wrong shape or dtype are refused, with the fix."""
    arguments, text = ERRORS[name]
    with pytest.raises(ShapeError) as error:
        losses.cross_entropy(*arguments)
    assert str(error.value) == text


def test_errors() -> None:
    """Weights, smoothing, reductions and the target of nll_loss are checked."""
    x, target = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ShapeError) as error:
        losses.cross_entropy(x, target, weight=torch.ones(4))
    assert str(error.value) == (
        "cross_entropy: weight must hold one number for each of the 5 classes, shape [5], got [4]. The classes are "
        "dimension 1 of the prediction, [4, 5]."
    )
    with pytest.raises(ArgumentError) as error:
        losses.cross_entropy(x, target, label_smoothing=1.5)
    assert str(error.value) == "cross_entropy: label_smoothing must lie between 0 and 1, got 1.5."
    for loss in (losses.cross_entropy, losses.nll_loss):
        with pytest.raises(ArgumentError) as reduction:
            loss(x, target, reduction="average")
        assert str(reduction.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
    with pytest.raises(ShapeError) as error:
        losses.nll_loss(x, x)
    assert str(error.value) == (
        "nll_loss: for a prediction of shape [4, 5] the target must be class indices, whole numbers of shape [4]; got "
        "torch.float32 of shape [4, 5]. Use target.argmax(1)."
    )
