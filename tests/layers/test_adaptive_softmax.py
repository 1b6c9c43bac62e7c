"""Adaptive softmax: equal to torch.nn's, and without control flow by the targets where that would break."""

import copy
from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

import bridge
import purenn as pn
from purenn.layers import (
    AdaptiveLogSoftmaxOutput,
    AdaptiveLogSoftmaxWithLoss,
    adaptive_log_prob,
    adaptive_log_softmax_with_loss,
    adaptive_predict,
)

# One target of each cluster and of the head.
EVERY = [0, 3, 7, 11]


def make(seed: int = 0, *, device: torch.device, **options: Any) -> AdaptiveLogSoftmaxWithLoss:
    """Twelve classes in a head of three and clusters of four and five."""
    key = pn.random.key(seed, device=device)
    return AdaptiveLogSoftmaxWithLoss.init(key, 8, 12, [3, 7], div_value=2.0, dtype=torch.float64, **options)


def reference(p: AdaptiveLogSoftmaxWithLoss) -> nn.AdaptiveLogSoftmaxWithLoss:
    """torch's module with the same parameters."""
    module = nn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 7], 2.0, p.head.bias is not None, dtype=torch.float64)
    module.load_state_dict(dict(pn.tree.named_leaves(p)))
    return module.to(p.head.weight.device)


@given(bias=st.booleans(), more=st.lists(st.integers(0, 11), max_size=5), seed=st.integers(0, 9))
def test_equals_torch(bias: bool, more: list[int], seed: int, device: torch.device) -> None:
    """Log-probabilities, loss, derivatives and names of parameters are torch's."""
    p = make(seed, head_bias=bias, device=device)
    module = reference(p)
    target = torch.tensor(EVERY + more, device=device)
    x = numbers(len(target), 8, seed=seed, device=device)
    check_equals_module(p, adaptive_log_softmax_with_loss, module, x, target)
    same(adaptive_log_prob(p, x), module.log_prob(x))
    same(adaptive_log_prob(module, x), module.log_prob(x))
    assert torch.equal(adaptive_predict(p, x), module.predict(x))
    assert torch.equal(adaptive_predict(module, x), module.predict(x))
    same(adaptive_log_softmax_with_loss(p, x, target).loss, module(x, target).loss)


def test_one_example_and_many_batch_dimensions(device: torch.device) -> None:
    """Leading dimensions are kept; the loss is the mean over all."""
    p, target = make(device=device), torch.tensor(EVERY, device=device)
    x = numbers(4, 8, device=device)
    out = adaptive_log_softmax_with_loss(p, x, target)
    assert isinstance(out, AdaptiveLogSoftmaxOutput)
    folded = adaptive_log_softmax_with_loss(p, x.reshape(2, 2, 8), target.reshape(2, 2))
    same(folded.output, out.output.reshape(2, 2))
    same(folded.loss, out.loss)
    one = adaptive_log_softmax_with_loss(p, x[2], target[2])
    same(one.output, out.output[2])
    same(one.loss, -out.output[2])
    same(p.log_prob(x[2]), p.log_prob(x)[2])
    assert torch.equal(p.predict(x.reshape(2, 2, 8)), p.predict(x).reshape(2, 2))


def test_probabilities(device: torch.device) -> None:
    """Those of all classes add up to one, those of the targets are among them, and the largest is predicted."""
    p, x = make(device=device), 3 * numbers(30, 8, device=device)
    every = adaptive_log_prob(p, x)
    same(every.exp().sum(-1), torch.ones(30, dtype=torch.float64, device=device))
    target = torch.arange(30, device=device) % 12
    same(adaptive_log_softmax_with_loss(p, x, target).output, every.gather(-1, target.unsqueeze(-1)).squeeze(-1))
    assert torch.equal(adaptive_predict(p, x), every.argmax(-1))
    assert torch.equal(vmap(p.predict)(x), every.argmax(-1))
    assert len(adaptive_predict(p, x).unique()) > 3
    frequent = pn.replace(p, head=pn.replace(p.head, weight=torch.cat([p.head.weight[:3], -50 * x[:1].expand(2, 8)])))
    assert torch.equal(frequent.predict(x[:1]), adaptive_log_prob(frequent, x[:1]).argmax(-1))


@pytest.mark.parametrize("batch", [(), (4,)])
def test_transformations(batch: tuple[int, ...], device: torch.device) -> None:
    """It keeps the promises of the shared table: every cluster computes all targets there."""
    target = torch.tensor(EVERY, device=device) if batch else torch.tensor(8, device=device)

    def apply(p: tuple[Any, Tensor], x: Tensor) -> Tensor:
        output, loss = adaptive_log_softmax_with_loss(p[0], x, p[1])
        return output + loss

    check_transformations(lambda seed: (make(seed, device=device), target), apply, numbers(2, *batch, 8, device=device))
    check_transformations(
        lambda seed: make(seed, device=device), adaptive_log_prob, numbers(2, *batch, 8, device=device), compile=False
    )
    check_purity(adaptive_log_softmax_with_loss, make(device=device), numbers(*batch, 8, device=device), target)


def test_compiles(device: torch.device) -> None:
    """Loss and prediction are one graph each, whatever the targets are."""
    p, x, target = make(device=device), numbers(4, 8, device=device), torch.tensor(EVERY, device=device)
    torch.compiler.reset()
    compiled = torch.compile(adaptive_log_softmax_with_loss, fullgraph=True, backend="eager")
    for targets in (target, torch.zeros_like(target)):
        same(tuple(compiled(p, x, targets)), tuple(adaptive_log_softmax_with_loss(p, x, targets)))
    assert torch.equal(torch.compile(adaptive_predict, fullgraph=True, backend="eager")(p, x), p.predict(x))


def test_targets_that_are_no_classes(device: torch.device) -> None:
    """Where their values cannot be looked at, they give NaN."""
    p, x = make(device=device), numbers(3, 8, device=device)
    target = torch.tensor([-1, 4, 12], device=device)
    output = vmap(lambda x, target: adaptive_log_softmax_with_loss(p, x, target).output)(x, target)
    assert output.isnan().tolist() == [True, False, True]


def test_as_a_module(device: torch.device) -> None:
    """Carried by a module it has torch's state dict and results."""
    p, x, target = make(device=device), numbers(4, 8, device=device), torch.tensor(EVERY, device=device)
    module, theirs = bridge.to_module(p), reference(p)
    same(module.state_dict(), dict(theirs.state_dict()))
    same(tuple(module(x, target)), tuple(theirs(x, target)))
    assert pn.tree.equal(copy.deepcopy(p), p)


def test_half_precision(device: torch.device) -> None:
    """In bfloat16 the results are those of single precision up to rounding."""
    p, x = pn.tree.to(make(device=device), torch.bfloat16), numbers(4, 8, device=device).bfloat16()
    target = torch.tensor(EVERY, device=device)
    out = adaptive_log_softmax_with_loss(p, x, target)
    assert out.output.dtype == torch.bfloat16
    exact = adaptive_log_softmax_with_loss(pn.tree.to(p, torch.float32), x.float(), target)
    same(out.output.float(), exact.output, tolerance=0.05)


def test_init(device: torch.device) -> None:
    """Sizes are torch's; on meta nothing is drawn."""
    key = pn.random.key(0, device=device)
    p = AdaptiveLogSoftmaxWithLoss.init(key, 64, 1000, [10, 100], head_bias=True, device="meta")
    theirs = nn.AdaptiveLogSoftmaxWithLoss(64, 1000, [10, 100], head_bias=True, device="meta")
    shapes = [(name, leaf.shape) for name, leaf in pn.tree.named_leaves(p)]
    assert shapes == [(name, value.shape) for name, value in theirs.state_dict().items()]
    assert all(leaf.is_meta for leaf in pn.tree.leaves(p))
    assert (p.in_features, p.n_classes, list(p.cutoffs)) == (64, 1000, theirs.cutoffs)
    x = torch.empty(5, 64, device="meta")
    out = adaptive_log_softmax_with_loss(p, x, torch.empty(5, dtype=torch.long, device="meta"))
    assert (out.output.shape, out.loss.shape, p.log_prob(x).shape, p.predict(x).shape) == ((5,), (), (5, 1000), (5,))
    assert repr(make(device=device)).startswith("AdaptiveLogSoftmaxWithLoss(")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        *(
            (
                lambda cutoffs=cutoffs: AdaptiveLogSoftmaxWithLoss.init(pn.random.key(0), 8, 12, cutoffs),
                pn.errors.ArgumentError,
                f"AdaptiveLogSoftmaxWithLoss.init: cutoffs must be at least one whole number, rising, between 1 and "
                f"n_classes - 1 = 11, got {cutoffs}.",
            )
            for cutoffs in ([], [7, 3], [0, 3], [3, 12], [3, 3], [2.5])
        ),
        (
            lambda: AdaptiveLogSoftmaxWithLoss.init(pn.random.key(0), 8, 12, [3, 7]),
            pn.errors.ArgumentError,
            "AdaptiveLogSoftmaxWithLoss.init: in_features=8 divided 2 times by div_value=4.0 leaves no feature for the "
            "last cluster. Use fewer cutoffs or a smaller div_value.",
        ),
        (
            lambda: make(device=torch.device("cpu"))(torch.zeros(4, 7), torch.zeros(4, dtype=torch.long)),
            pn.errors.ShapeError,
            "adaptive_log_softmax_with_loss: the last dimension of x must be in_features=8, got shape [4, 7].",
        ),
        (
            lambda: make(device=torch.device("cpu"))(torch.zeros(4, 8), torch.zeros(1, dtype=torch.long)),
            pn.errors.ShapeError,
            "adaptive_log_softmax_with_loss: target must have the shape of x without its last dimension, [4], got [1].",
        ),
        (
            lambda: make(device=torch.device("cpu"))(torch.zeros(2, 8), torch.tensor([1, 12])),
            pn.errors.ArgumentError,
            "adaptive_log_softmax_with_loss: targets must be classes from 0 to 11, got numbers from 1 to 12.",
        ),
        (
            lambda: make(device=torch.device("cpu")).predict(torch.zeros(())),
            pn.errors.ShapeError,
            "adaptive_predict: the last dimension of x must be in_features=8, got shape [].",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Cutoffs, shapes and targets that cannot work are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
