"""Cross entropy of a linear layer: equal to the two steps, in chunks or not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _losses import REDUCTIONS, SEEDS, Case, check_case, check_equals
from _reference import filled, numbers, same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import purenn as pn
from purenn import losses
from purenn.errors import ArgumentError, ShapeError

CHUNKS = st.sampled_from([None, 1, 2, 7])


@given(
    positions=st.sampled_from([(), (2,), (2, 2)]),
    probabilities=st.booleans(),
    biased=st.booleans(),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    reduction=REDUCTIONS,
    chunk_size=CHUNKS,
    seed=SEEDS,
)
def test_equals_two_steps(
    positions: tuple[int, ...],
    probabilities: bool,
    biased: bool,
    weighted: bool,
    smoothing: float,
    reduction: Any,
    chunk_size: int | None,
    seed: int,
    device: torch.device,
) -> None:
    """Value and derivatives are those of a linear map and torch's cross entropy, whatever the size of the chunks."""
    x, w = numbers(5, 3, seed=seed, device=device), numbers(4, *positions, 3, seed=seed + 1, device=device)
    bias = numbers(4, *positions, seed=seed + 2, device=device)
    weight = numbers(4, seed=seed, device=device).abs() if weighted else None
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    generator = torch.Generator().manual_seed(seed)
    if probabilities:
        target = numbers(5, 4, *positions, seed=seed + 3, device=device).softmax(1)
    else:
        target = torch.randint(4, (5, *positions), generator=generator).to(device)
        options["ignore_index"] = 2

    def ours(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        given = bias if biased else None
        return losses.linear_cross_entropy(x, w, target, linear_bias=given, chunk_size=chunk_size, **options)

    def theirs(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        logits = torch.einsum("bi,c...i->bc...", x, w) + (bias if biased else 0)
        return F.cross_entropy(logits, target, **options)

    check_equals(ours, theirs, x, w, bias)


def test_a_single_example(device: torch.device) -> None:
    """An example without a batch is not cut into chunks."""
    x, w, target = numbers(3, device=device), numbers(4, 3, device=device), torch.tensor(2, device=device)
    same(losses.linear_cross_entropy(x, w, target, chunk_size=1), F.cross_entropy(w @ x, target))


def test_chunks_save_memory() -> None:
    """What the backward pass needs is smaller than the logits."""
    x, w = torch.randn(64, 2, requires_grad=True), torch.randn(100, 2, requires_grad=True)
    target = torch.zeros(64, dtype=torch.int64)

    def saved(chunk_size: int | None) -> int:
        kept: dict[int, int] = {}

        def note(value: Tensor) -> Tensor:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            losses.linear_cross_entropy(x, w, target, chunk_size=chunk_size)
        return sum(kept.values())

    assert saved(None) > 4 * 64 * 100
    assert saved(8) < 4 * 64 * 100 / 4


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transformations(reduction: Any, chunk_size: int | None, device: torch.device) -> None:
    """Batching, derivatives of all kinds, tracing and half precision."""
    case = Case(
        lambda x, w, b, t: losses.linear_cross_entropy(
            x, w, t, linear_bias=b, chunk_size=chunk_size, reduction=reduction
        ),
        numbers(3, 5, 3),
        lambda seed: (
            numbers(4, 3, seed=seed),
            numbers(4, seed=seed + 1),
            torch.randint(4, (5,), generator=torch.Generator().manual_seed(seed)),
        ),
    )
    check_case(case, device, compile=reduction == "mean")


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this version of torch has no such module")
@pytest.mark.parametrize("positions", [(), (2, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_container_equals_torch(bias: bool, positions: tuple[int, ...], device: torch.device) -> None:
    """With a module's parameters the container has its value, and torch's module may stand in its place."""
    weight = numbers(4, device=device).abs()
    sizes: dict[str, Any] = {"out_features": positions, "bias": bias, "weight": weight}
    options: dict[str, Any] = {"reduction": "sum", "label_smoothing": 0.1, "ignore_index": 1}
    module = nn.LinearCrossEntropyLoss(3, 4, **sizes, **options).double().to(device)
    p = filled(losses.LinearCrossEntropyLoss.init(pn.random.key(0), 3, 4, **sizes, **options, chunk_size=2), module)
    x, target = numbers(5, 3, device=device), torch.ones(5, *positions, dtype=torch.int64, device=device)
    target[0] = 3
    same(p(x, target), module(x, target), tolerance=1e-12)


def test_container(device: torch.device) -> None:
    """It draws what a linear layer draws, and prints its options."""
    key = pn.random.key(3, device=device)
    p = losses.LinearCrossEntropyLoss.init(key, 3, 4, out_features=(2,), bias=True)
    assert pn.tree.equal(p.linear, pn.layers.Linear.init(key, 3, 8))
    assert repr(p) == (
        "LinearCrossEntropyLoss(num_classes=4, out_features=(2,), reduction='mean', ignore_index=None, "
        "label_smoothing=0.0, chunk_size=None\n  (linear): Linear(in_features=3, out_features=8, bias=True)\n)"
    )


def test_errors() -> None:
    """Shapes and options are checked."""
    x, w, target = torch.zeros(5, 3), torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ShapeError) as error:
        losses.linear_cross_entropy(x, w[:, :2], target)
    assert str(error.value) == (
        "linear_cross_entropy: expected x of shape [batch, in_features] or [in_features] and linear_weight of shape "
        "[classes, ..., in_features] with the same in_features, got [5, 3] and [4, 2]."
    )
    with pytest.raises(ShapeError) as error:
        losses.linear_cross_entropy(x[0], torch.zeros(4, 2, 3), target[:2])
    assert str(error.value) == (
        "linear_cross_entropy: linear_weight of shape [4, 2, 3] has several positions, which needs a batch: give "
        "x.unsqueeze(0) for x of shape [3], and the target likewise."
    )
    with pytest.raises(ShapeError) as error:
        losses.linear_cross_entropy(x, w, target, linear_bias=torch.zeros(3))
    assert str(error.value) == (
        "linear_cross_entropy: linear_bias must have the shape of linear_weight without its last dimension, [4], got "
        "[3]."
    )
    with pytest.raises(ShapeError) as error:
        losses.linear_cross_entropy(x, w, target[:4], chunk_size=2)
    assert str(error.value) == (
        "linear_cross_entropy: x has 5 examples, the target has shape [4]; its first dimension must be their number."
    )
    with pytest.raises(ArgumentError) as value:
        losses.linear_cross_entropy(x, w, target, chunk_size=0)
    assert str(value.value) == "linear_cross_entropy: chunk_size must be at least 1, or None, got 0."
    with pytest.raises(ArgumentError) as value:
        losses.linear_cross_entropy(x, w, torch.zeros(5, 4), ignore_index=1)
    assert str(value.value) == (
        "linear_cross_entropy: ignore_index=1 has no meaning for class probabilities: leave it out, and give ignored "
        "examples probabilities of 0."
    )
