"""Connectionist temporal classification: torch's loss, with the derivatives that it has as a function."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _losses import REDUCTIONS, SEEDS, Case, check_case, check_container
from _reference import numbers, same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from purenn import losses
from purenn.errors import ArgumentError, ShapeError

TIME, BATCH, CLASSES, LABELS = 6, 3, 4, 3


def example(seed: int, blank: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, padded labels and lengths, some of them 0 and some impossible."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES - 1, (BATCH, LABELS), generator=generator)
    labels = labels + (labels >= blank)
    input_lengths = torch.randint(TIME + 1, (BATCH,), generator=generator)
    target_lengths = torch.randint(LABELS + 1, (BATCH,), generator=generator)
    x = numbers(TIME, BATCH, CLASSES, seed=seed)
    return x.to(device), labels.to(device), input_lengths.to(device), target_lengths.to(device)


@given(reduction=REDUCTIONS, blank=st.sampled_from([0, 2]), concatenated=st.booleans(), seed=SEEDS)
def test_equals_torch(reduction: Any, blank: int, concatenated: bool, seed: int, device: torch.device) -> None:
    """Behind a log softmax value and gradient are torch's, for all lengths and forms of the target."""
    x, labels, input_lengths, target_lengths = example(seed, blank, device)
    if concatenated:
        labels = torch.cat([row[:length] for row, length in zip(labels, target_lengths, strict=True)])
    rest = (labels, input_lengths, target_lengths)
    options = {"blank": blank, "reduction": reduction, "zero_infinity": True}

    def ours(x: Tensor) -> Tensor:
        return torch.sin(losses.ctc_loss(x.log_softmax(-1), *rest, **options)).sum()

    x.requires_grad_()
    theirs = F.ctc_loss(x.log_softmax(-1), *rest, **options)
    expected = torch.autograd.grad(torch.sin(theirs).sum(), x)[0]
    same(losses.ctc_loss(x.log_softmax(-1), *rest, **options), theirs, tolerance=1e-12)
    same(torch.autograd.grad(ours(x), x)[0], expected, tolerance=1e-12)
    same(torch.func.grad(ours)(x.detach()), expected, tolerance=1e-12)
    graph = torch.autograd.grad(ours(x), x, create_graph=True)[0]
    same(graph.detach(), expected, tolerance=1e-12)
    del options["zero_infinity"]
    same(losses.ctc_loss(x.log_softmax(-1), *rest, **options), F.ctc_loss(x.log_softmax(-1), *rest, **options))


def test_counts_all_alignments(device: torch.device) -> None:
    """It is the logarithm of the sum of the probabilities of all emissions that leave the target."""
    x = numbers(4, 3, device=device).log_softmax(-1)
    for target in ([], [1], [1, 2], [2, 2], [1, 2, 1]):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for emission in itertools.product(range(3), repeat=4):
            if [label for label, _ in itertools.groupby(emission) if label != 0] == target:
                total = total + x[range(4), emission].sum().exp()
        labels = torch.tensor(target, dtype=torch.int64, device=device)
        same(losses.ctc_loss(x, labels, 4, len(target), reduction="sum"), -total.log())


@pytest.mark.parametrize("transformed", [False, True])
def test_derivatives_are_those_of_the_function(transformed: bool, device: torch.device) -> None:
    """For any logarithms, normalised or not, first and second derivatives are those of finite differences."""
    target = torch.tensor([[1, 1], [2, 1]], device=device)

    def loss(x: Tensor) -> Tensor:
        if transformed:
            return torch.func.vmap(lambda x, t: losses.ctc_loss(x, t, 4, 2), in_dims=(1, 0))(x, target)
        return losses.ctc_loss(x, target, (4, 4), (2, 2), reduction="none")

    x = numbers(4, 2, 3, device=device).requires_grad_()
    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("impossible", ["too short", "probability 0"])
def test_impossible_targets(impossible: str, device: torch.device) -> None:
    """They cost infinity, or 0 if so asked, and have no gradient, while torch's is NaN; the others keep theirs."""
    x = numbers(3, 2, 4, device=device).log_softmax(-1)
    target = torch.tensor([[1, 1], [2, 3]] if impossible == "too short" else [[1, 0], [2, 3]], device=device)
    lengths = torch.tensor([2, 2] if impossible == "too short" else [1, 2], device=device)
    frames = torch.tensor([2, 3] if impossible == "too short" else [3, 3], device=device)
    if impossible == "probability 0":
        x[:, 0, 1] = -torch.inf

    def loss(x: Tensor, **options: Any) -> Tensor:
        return losses.ctc_loss(x, target, frames, lengths, reduction="none", **options)

    alone = torch.func.grad(lambda x: losses.ctc_loss(x, target[1], 3, 2, reduction="sum"))(x[:, 1])
    expected = torch.stack((torch.zeros_like(alone), alone), 1)
    given = x.clone().requires_grad_()
    for options in ({}, {"zero_infinity": True}):
        assert loss(x, **options)[0] == (0 if options else torch.inf)
        same(torch.autograd.grad(loss(given, **options).sum(), given)[0], expected)
        same(torch.func.grad(lambda x, options=options: loss(x, **options).sum())(x), expected)


def test_forms_of_arguments(device: torch.device) -> None:
    """Lengths may be numbers, tuples or tensors, padding anything, and a sequence may come without a batch."""
    x = numbers(TIME, 2, CLASSES, device=device).log_softmax(-1)
    labels = torch.tensor([[1, 2, 3], [3, -1, 99]], dtype=torch.int32, device=device)
    expected = F.ctc_loss(x, labels.clamp(1, 3).long(), (6, 5), (3, 1), reduction="none")
    for lengths in (((6, 5), (3, 1)), (torch.tensor([6, 5]), torch.tensor([3, 1]))):
        same(losses.ctc_loss(x, labels, *lengths, reduction="none"), expected)
        flat = torch.tensor([1, 2, 3, 3], device=device)
        same(losses.ctc_loss(x, flat, *lengths, reduction="none"), expected)
    for target, one in (
        (labels[0], (6, 3)),
        (labels[:1], ((6,), (3,))),
        (labels[0], (torch.tensor(6), torch.tensor(3))),
    ):
        same(losses.ctc_loss(x[:, 0], target, *one, reduction="none"), expected[0])
    same(losses.ctc_loss(x[:, 0], labels[0], 6, 3), expected[0] / 3)
    empty = torch.empty(0, dtype=torch.int64, device=device)
    assert losses.ctc_loss(x[:, :0], empty.reshape(0, 2), empty, empty).isnan()
    none = losses.ctc_loss(x, labels[:, :0], (6, 5), (0, 0), reduction="none")
    same(none, torch.stack((-x[:, 0, 0].sum(), -x[:5, 1, 0].sum())))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transformations(reduction: Any, device: torch.device) -> None:
    """Batching over all arguments, derivatives of all kinds, tracing and half precision."""
    case = Case(
        lambda x, *rest: losses.ctc_loss(x.log_softmax(-1), *rest, reduction=reduction),
        numbers(3, 4, 2, 3),
        lambda seed: (
            torch.tensor([[1, 2], [2, 2]]) if seed % 2 else torch.tensor([[2, 1], [1, 1]]),
            torch.tensor([4, 3]),
            torch.tensor([1 + seed % 2, 2]),
        ),
    )
    check_case(case, device, compile=reduction == "mean")


def test_transformations_of_concatenated_targets(device: torch.device) -> None:
    """Targets in one dimension are batched as well."""
    case = Case(
        lambda x, *rest: losses.ctc_loss(x.log_softmax(-1), *rest),
        numbers(3, 4, 2, 3),
        lambda seed: (torch.tensor([1, 2, 1]), torch.tensor([4, 4]), torch.tensor([1 + seed % 2, 2 - seed % 2])),
    )
    check_case(case, device)


def test_container(device: torch.device) -> None:
    """The container has the options, defaults and value of the class of torch.nn."""
    x, labels, _, target_lengths = example(0, 1, device)
    frames = torch.full((BATCH,), TIME, device=device)
    rest = (x.log_softmax(-1), labels, frames, target_lengths)
    check_container("CTCLoss", *rest, blank=1, reduction="sum", zero_infinity=True)


def test_errors() -> None:
    """Shapes, the blank and the reduction are checked."""
    x, labels = torch.zeros(6, 2, 4), torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError) as error:
        losses.ctc_loss(torch.zeros(4), labels, 1, 1)
    assert str(error.value) == (
        "ctc_loss: log_probabilities must be [time, batch, classes] or [time, classes] with at least one frame, got "
        "shape [4]."
    )
    with pytest.raises(ArgumentError) as value:
        losses.ctc_loss(x, labels, (6, 6), (3, 3), blank=4)
    assert str(value.value) == "ctc_loss: blank must be one of the 4 classes, got 4."
    with pytest.raises(ShapeError) as error:
        losses.ctc_loss(x, labels, (6, 6, 6), (3, 3))
    assert str(error.value) == (
        "ctc_loss: input_lengths must hold one number for each of the 2 sequences, got shape [3]."
    )
    for lengths, text in (
        (((7, 6), (3, 3)), "ctc_loss: input_lengths must lie between 0 and 6, got [7, 6]."),
        (((6, 6), (4, 3)), "ctc_loss: target_lengths must lie between 0 and 3, got [4, 3]."),
    ):
        with pytest.raises(ArgumentError) as value:
            losses.ctc_loss(x, labels, *lengths)
        assert str(value.value) == text
    with pytest.raises(ShapeError) as error:
        losses.ctc_loss(x, labels.T, (6, 6), (3, 3))
    assert str(error.value) == (
        "ctc_loss: target must be [batch, labels] with batch 2, or all labels in one dimension, got shape [3, 2]."
    )
    with pytest.raises(ArgumentError) as value:
        losses.ctc_loss(x, labels, (6, 6), (3, 3), reduction="average")
    assert str(value.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
