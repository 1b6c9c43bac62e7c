"""Margin losses: equal to torch's, and differentiable twice and batchable, which torch's kernels are not."""

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


def signs(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """1 and -1."""
    return numbers(*shape, seed=seed, device=device).sign()


def classes(*shape: int, number: int = 5, seed: int = 0) -> Tensor:
    """Class indices."""
    return torch.randint(number, shape, generator=torch.Generator().manual_seed(seed))


def label_sets(*shape: int, seed: int = 0) -> Tensor:
    """Some classes of each example, in any order, ended by -1 unless there are all."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(*shape, generator=generator).argsort(-1)
    ends = torch.randint(shape[-1] + 1, (*shape[:-1], 1), generator=generator)
    return torch.where(torch.arange(shape[-1]) == ends, -1, order)


@given(
    shape=st.sampled_from([(5,), (0, 5), (3, 5), (3, 1)]),
    reduction=REDUCTIONS,
    p=st.sampled_from([1, 2]),
    margin=st.sampled_from([0.5, 1.0]),
    weighted=st.booleans(),
    seed=SEEDS,
)
def test_multi_margin_equals_torch(
    shape: tuple[int, ...], reduction: Any, p: int, margin: float, weighted: bool, seed: int, device: torch.device
) -> None:
    """Value and gradient are torch's for every option, under torch.func too; second derivatives are the formula's."""
    weight = numbers(shape[-1], seed=seed, device=device).abs() if weighted else None
    options: dict[str, Any] = {"reduction": reduction, "p": p, "margin": margin, "weight": weight}
    target = classes(*shape[:-1], number=shape[-1], seed=seed).to(device)
    _check_first_order(
        lambda x: losses.multi_margin_loss(x, target, **options),
        lambda x: F.multi_margin_loss(x, target, **options),
        numbers(*shape, seed=seed, device=device),
    )


@given(shape=st.sampled_from([(5,), (3, 5), (3, 1)]), reduction=REDUCTIONS, seed=SEEDS)
def test_multi_label_margin_equals_torch(
    shape: tuple[int, ...], reduction: Any, seed: int, device: torch.device
) -> None:
    """Value and gradient are torch's for every set of labels, under torch.func too."""
    target = label_sets(*shape, seed=seed).to(device)
    _check_first_order(
        lambda x: losses.multi_label_margin_loss(x, target, reduction=reduction),
        lambda x: F.multilabel_margin_loss(x, target, reduction=reduction),
        numbers(*shape, seed=seed, device=device),
    )


def _check_first_order(ours: Any, theirs: Any, x: Tensor) -> None:
    check_equals(ours, theirs, x, second_order=False)

    def total(loss: Any) -> Any:
        return lambda x: torch.sin(loss(x)).sum()

    x = x.requires_grad_()
    expected = torch.autograd.grad(total(theirs)(x), x)[0]
    same(torch.func.grad(total(ours))(x.detach()), expected, tolerance=1e-12)
    # The second derivative in plain autograd, where the kernel runs, is that of the formula, which torch.func sees.
    graph = torch.autograd.grad(total(ours)(x), x, create_graph=True)[0]
    same(graph.detach(), expected, tolerance=1e-12)
    again = torch.autograd.grad(torch.sin(graph).sum(), x)[0]
    same(again, torch.func.grad(lambda x: torch.sin(torch.func.grad(total(ours))(x)).sum())(x.detach()))


def test_empty_batches(device: torch.device) -> None:
    """The mean over no example is 0, for which torch's kernel of several labels gives what was in memory."""
    x, labels = torch.zeros(0, 5, device=device), torch.zeros(0, 5, dtype=torch.int64, device=device)
    assert losses.multi_label_margin_loss(x, labels) == 0
    assert losses.multi_label_margin_loss(x, labels, reduction="none").shape == (0,)
    assert losses.multi_margin_loss(x, labels[:, 0]) == 0


def test_labels_twice_and_kinks(device: torch.device) -> None:
    """A class that is named twice counts twice; what follows -1 is not read; kinks have torch's derivative."""
    x = torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0], dtype=torch.float64, device=device)
    target = torch.tensor([1, 1, -1, 3, 4], device=device)
    _check_first_order(
        lambda x: losses.multi_label_margin_loss(x, target), lambda x: F.multilabel_margin_loss(x, target), x
    )


@given(shape=SHAPES, reduction=REDUCTIONS, margin=st.sampled_from([0.5, 1.0]), seed=SEEDS)
def test_elementwise_equals_torch(
    shape: tuple[int, ...], reduction: Any, margin: float, seed: int, device: torch.device
) -> None:
    """The hinge and the logistic loss have torch's value and derivatives."""
    x, y = numbers(*shape, seed=seed, device=device), signs(*shape, seed=seed + 1, device=device)
    check_equals(
        lambda x: losses.hinge_embedding_loss(x, y, margin=margin, reduction=reduction),
        lambda x: F.hinge_embedding_loss(x, y, margin, reduction=reduction),
        x,
    )
    check_equals(
        lambda x: losses.soft_margin_loss(9 * x, y, reduction=reduction),
        lambda x: F.soft_margin_loss(9 * x, y, reduction=reduction),
        x,
    )


def test_soft_margin_of_large_numbers(device: torch.device) -> None:
    """Value and gradient of wildly wrong predictions are finite, where torch's exponential overflows."""
    x = torch.tensor([1000.0, -1000.0], dtype=torch.float64, device=device)
    y = torch.tensor([-1, 1], device=device)
    same(losses.soft_margin_loss(x, y), x[0])
    same(torch.func.grad(losses.soft_margin_loss)(x, y), -y.double() / 2)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(5,), (3, 5)])
@pytest.mark.parametrize("name", ["multi_margin_loss", "multi_label_margin_loss", "hinge", "soft"])
def test_transformations(name: str, shape: tuple[int, ...], reduction: Any, device: torch.device) -> None:
    """Batching, derivatives of all kinds (weights are differentiated too), tracing and half precision."""
    cases = {
        "multi_margin_loss": (
            lambda x, t, w: losses.multi_margin_loss(x, t, p=2, weight=w, reduction=reduction),
            lambda seed: (classes(*shape[:-1], seed=seed), numbers(5, seed=seed).abs()),
        ),
        "multi_label_margin_loss": (
            lambda x, t: losses.multi_label_margin_loss(x, t, reduction=reduction),
            lambda seed: (label_sets(*shape, seed=seed),),
        ),
        "hinge": (
            lambda x, t: losses.hinge_embedding_loss(x, t.sign(), reduction=reduction),
            lambda seed: (2 * classes(*shape, number=2, seed=seed) - 1,),
        ),
        "soft": (
            lambda x, t: losses.soft_margin_loss(x, t.sign(), reduction=reduction),
            lambda seed: (2 * classes(*shape, number=2, seed=seed) - 1,),
        ),
    }
    loss, rest = cases[name]
    check_case(Case(loss, numbers(3, *shape), rest), device, compile=reduction == "mean" and len(shape) == 2)


def test_strides_do_not_matter(device: torch.device) -> None:
    """Transposed and expanded inputs give what contiguous ones do."""
    x, target = numbers(5, 3, device=device).T, label_sets(1, 5).to(device).expand(3, 5)
    same(losses.multi_label_margin_loss(x, target), losses.multi_label_margin_loss(x.contiguous(), target.contiguous()))
    same(losses.multi_margin_loss(x, target[:, 0]), losses.multi_margin_loss(x.contiguous(), target[:, 0].contiguous()))


def test_containers(device: torch.device) -> None:
    """The container of each class of torch.nn has its options, defaults and value."""
    x, target = numbers(3, 5, device=device), classes(3).to(device)
    weight = numbers(5, seed=2, device=device).abs()
    check_container("MultiMarginLoss", x, target, p=2, margin=0.5, weight=weight, reduction="none")
    check_container("MultiLabelMarginLoss", x, label_sets(3, 5).to(device), reduction="sum")
    check_container("HingeEmbeddingLoss", x, x.sign(), margin=0.5, reduction="sum")
    check_container("SoftMarginLoss", x, x.sign(), reduction="none")


def test_errors() -> None:
    """Shapes, reductions and p are checked."""
    x, target = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ArgumentError) as value:
        losses.multi_margin_loss(x, target, p=3)
    assert str(value.value) == "multi_margin_loss: p must be 1 or 2, got 3."
    with pytest.raises(ShapeError) as error:
        losses.multi_margin_loss(x, target[:2])
    assert str(error.value) == (
        "multi_margin_loss: target must hold one class for each example, shape [3] for a prediction of shape [3, 5], "
        "got [2]."
    )
    with pytest.raises(ShapeError) as error:
        losses.multi_margin_loss(x, target, weight=torch.ones(3))
    assert str(error.value) == (
        "multi_margin_loss: weight must hold one number for each of the 5 classes, shape [5], got [3]."
    )
    for name, labels in (("multi_margin_loss", target), ("multi_label_margin_loss", target.reshape(1, 3, 1))):
        with pytest.raises(ShapeError) as error:
            getattr(losses, name)(torch.zeros(1, 3, 1), labels)
        assert str(error.value) == (
            f"{name}: the prediction must be [batch, classes] or [classes], got shape [1, 3, 1]. Flatten the "
            f"dimensions before the classes into one, or use vmap."
        )
    for name in ("multi_label_margin_loss", "hinge_embedding_loss", "soft_margin_loss"):
        with pytest.raises(ShapeError) as error:
            getattr(losses, name)(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
        assert str(error.value) == (
            f"{name}: prediction and target must have the same shape, got [4, 1] and [4]. Reshape them, so that no "
            f"element is compared with those of other examples by broadcasting."
        )
        with pytest.raises(ArgumentError) as value:
            getattr(losses, name)(x, x.long(), reduction="average")
        assert str(value.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
