"""Several losses as one, with given and with learned weights."""

import pytest
import torch
from _reference import numbers, same
from _transformations import check_transformations

import bridge
import purenn as pn
from purenn import losses
from purenn.errors import ArgumentError, ShapeError


def test_row_42_given_weights(device: torch.device) -> None:
    """It is the weighted sum, for lists and tensors on both sides, and in the losses' dtype."""
    values = numbers(3, device=device)
    expected = 0.5 * values[0] + 2 * values[1] - values[2]
    for given in (values, list(values), tuple(values)):
        for weights in ([0.5, 2, -1], (0.5, 2, -1), torch.tensor([0.5, 2, -1], dtype=torch.float64, device=device)):
            same(losses.multi_task_loss(given, weights), expected)
    assert losses.multi_task_loss(list(values.float()), [0.5, 2, -1]).dtype == torch.float32
    weights = torch.func.grad(lambda w: losses.multi_task_loss(list(values), w))(torch.ones_like(values))
    same(weights, values, tolerance=0)


def test_row_42_learned_weights(device: torch.device) -> None:
    """It is the paper's likelihood; at its minimum the variances are the losses themselves."""
    values = numbers(3, device=device).abs() + 0.1
    p = losses.UncertaintyWeights.init(3, dtype=torch.float64, device=device)
    same(p(values), values.sum() / 2)
    variances = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, device=device)
    p = losses.UncertaintyWeights(variances.log())
    expected = (values / (2 * variances) + variances.sqrt().log()).sum()
    same(losses.uncertainty_weighted_loss(p, list(values)), expected)
    same(p(values), expected)
    same(bridge.to_module(p)(values), expected)
    best = losses.UncertaintyWeights(values.log())
    gradient = pn.grad(lambda p: losses.uncertainty_weighted_loss(p, values))(best)
    same(gradient.log_variances, torch.zeros_like(values), tolerance=1e-15)
    assert repr(best) == "UncertaintyWeights(tasks=3)"


def test_transformations(device: torch.device) -> None:
    """Batching over losses and weights, derivatives of all kinds, tracing."""
    values = numbers(3, 2, device=device)
    check_transformations(
        lambda seed: losses.UncertaintyWeights(numbers(2, seed=seed, device=device)),
        losses.uncertainty_weighted_loss,
        values,
    )
    check_transformations(
        lambda seed: numbers(2, seed=seed, device=device), lambda w, x: losses.multi_task_loss(x.unbind(), w), values
    )


def test_init_on_meta() -> None:
    """Nothing is allocated on the device meta."""
    p = losses.UncertaintyWeights.init(2, dtype=torch.bfloat16, device="meta")
    assert (p.log_variances.shape, p.log_variances.dtype, p.log_variances.device.type) == ((2,), torch.bfloat16, "meta")


def test_errors() -> None:
    """Numbers that differ, no losses, and losses that are not single numbers are refused."""
    values = list(torch.ones(3))
    with pytest.raises(ShapeError) as error:
        losses.multi_task_loss(values, [1.0, 2.0])
    assert str(error.value) == ("multi_task_loss: expected one weight for each loss, got 3 losses and 2 weights.")
    with pytest.raises(ShapeError) as error:
        losses.uncertainty_weighted_loss(losses.UncertaintyWeights.init(2), values)
    assert str(error.value) == "uncertainty_weighted_loss: expected one loss for each of the 2 tasks, got 3."
    with pytest.raises(ShapeError) as error:
        losses.multi_task_loss([values[0], torch.ones(2)], [1.0, 1.0])
    assert str(error.value) == (
        "multi_task_loss: losses[1] must be a single number, got shape [2]. Reduce it first, for example with .mean()."
    )
    with pytest.raises(ArgumentError) as value:
        losses.multi_task_loss([], [])
    assert str(value.value) == "multi_task_loss: expected at least one loss, got none."
