"""Schedules: the values of torch's, for numbers and for tensors."""

import math
from typing import Any

import pytest
import torch

import purenn as pn
from purenn import optim
from purenn.errors import ArgumentError

lr = torch.optim.lr_scheduler

CASES = {
    "constant": (lambda: optim.constant_schedule(0.1), lambda o: lr.LambdaLR(o, lambda _: 1.0)),
    "linear": (lambda: optim.linear_schedule(0.02, 0.08, 10), lambda o: lr.LinearLR(o, 0.2, 0.8, total_iters=10)),
    "cosine": (lambda: optim.cosine_schedule(0.1, 19, end=0.01), lambda o: lr.CosineAnnealingLR(o, 19, eta_min=0.01)),
    "polynomial": (
        lambda: optim.polynomial_schedule(0.1, 0.0, 12, power=2.5),
        lambda o: lr.PolynomialLR(o, total_iters=12, power=2.5),
    ),
    "exponential": (lambda: optim.exponential_schedule(0.1, 0.9), lambda o: lr.ExponentialLR(o, 0.9)),
    "staircase": (
        lambda: optim.exponential_schedule(0.1, 0.5, steps=4, staircase=True),
        lambda o: lr.StepLR(o, 4, gamma=0.5),
    ),
    "piecewise": (
        lambda: optim.piecewise_schedule([0.1, 0.05, 0.025], [5, 11]),
        lambda o: lr.MultiStepLR(o, [5, 11], gamma=0.5),
    ),
    "one cycle": (lambda: optim.one_cycle_schedule(0.1, 20), lambda o: lr.OneCycleLR(o, 0.1, total_steps=20)),
    "one cycle, three phases": (
        lambda: optim.one_cycle_schedule(
            0.1, 20, rise=0.25, start_factor=10, end_factor=100, linear=True, three_phases=True
        ),
        lambda o: lr.OneCycleLR(
            o,
            0.1,
            total_steps=20,
            pct_start=0.25,
            div_factor=10,
            final_div_factor=100,
            anneal_strategy="linear",
            three_phase=True,
        ),
    ),
    "join": (
        lambda: optim.join_schedules([optim.linear_schedule(0.01, 0.1, 6), optim.exponential_schedule(0.1, 0.8)], [6]),
        lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.1, 1.0, total_iters=6), lr.ExponentialLR(o, 0.8)], [6]),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_equals_torch(name: str) -> None:
    """The first twenty values are torch's, for ints, integer tensors, floating tensors, and all at once under vmap."""
    make, theirs = CASES[name]
    schedule = make()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, values = theirs(optimizer), []
    for _ in range(20):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(values) < 20:
            scheduler.step()
    right = torch.tensor(values, dtype=torch.float64)
    numbers = [schedule(step) for step in range(20)]
    assert all(type(number) is float for number in numbers)
    torch.testing.assert_close(torch.tensor(numbers, dtype=torch.float64), right, rtol=0, atol=1e-12)
    steps = torch.arange(20)
    for given in (steps, steps.double()):
        torch.testing.assert_close(torch.stack([schedule(step) for step in given]), right, rtol=0, atol=1e-12)
        torch.testing.assert_close(pn.vmap(schedule)(given), right, rtol=0, atol=1e-12)
    assert schedule(torch.tensor(3.0)).dtype == torch.float32


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (optim.linear_schedule(1.0, 0.2, 5), 0.2),
        (optim.polynomial_schedule(1.0, 0.2, 5, power=3), 0.2),
        (optim.cosine_schedule(1.0, 10, warmup_steps=3, end=0.1), 0.1),
        (optim.one_cycle_schedule(1.0, 10), 1 / 25 / 1e4),
        (optim.exponential_schedule(1.0, 0.5, end=0.25), 0.25),
        (optim.exponential_schedule(1.0, 2.0, end=4.0), 4.0),
    ],
)
def test_after_the_end(schedule: Any, last: float) -> None:
    """After their last step schedules stay where they are."""
    for step in (10, 11, 1000):
        assert schedule(step) == pytest.approx(last, abs=1e-12)
        assert float(schedule(torch.tensor(step))) == pytest.approx(last, abs=1e-12)


def test_far_after_the_end() -> None:
    """Where a power is too large for a float the end is reached, and derivatives are finite, joined as well."""
    growing = optim.exponential_schedule(0.1, 1.5, end=0.5)
    assert growing(10_000) == float(growing(torch.tensor(10_000))) == 0.5
    assert optim.exponential_schedule(0.1, 1.5)(10_000) == math.inf
    far = torch.tensor(10_000)
    for make in (
        lambda rate: optim.exponential_schedule(0.1, rate, end=0.5),
        lambda rate: optim.join_schedules([optim.exponential_schedule(0.1, rate), optim.constant_schedule(0.5)], [9]),
    ):
        assert float(pn.grad(lambda rate, make=make: make(rate)(far))(torch.tensor(1.5, dtype=torch.float64))) == 0


def test_joined_numbers_keep_their_digits() -> None:
    """Schedules that return plain numbers are joined in float64."""
    schedule = optim.join_schedules([lambda step: 0.1, lambda step: 0.3], [2])
    assert [float(schedule(torch.tensor(step))) for step in (1, 2)] == [0.1, 0.3]


def test_warm_up() -> None:
    """The warm-up is a straight line, and the cosine starts where it ends."""
    schedule = optim.cosine_schedule(1.0, 12, warmup_steps=4, start=0.2)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(8) == pytest.approx(0.5)


def test_values_are_differentiable() -> None:
    """Values given as tensors have gradients, also in branches that are not taken."""

    def value(peak: torch.Tensor, step: Any) -> torch.Tensor:
        schedule = optim.join_schedules(
            [optim.cosine_schedule(peak, 8, warmup_steps=2), optim.exponential_schedule(peak, peak)], [5]
        )
        return schedule(step)

    peak = torch.tensor(0.3, dtype=torch.float64)
    for step in (0, 1, 4, 7):
        differences = (value(peak + 1e-6, step) - value(peak - 1e-6, step)) / 2e-6
        for given in (step, torch.tensor(step)):
            torch.testing.assert_close(pn.grad(value)(peak, given), differences, rtol=1e-6, atol=1e-9)


def test_errors() -> None:
    """Settings that make no sense are refused."""
    cases = {
        "linear_schedule: steps must be an integer of at least 1, got 0.": lambda: optim.linear_schedule(1, 0, 0),
        "polynomial_schedule: steps must be an integer of at least 1, got 2.5.": lambda: optim.polynomial_schedule(
            1,
            0,
            2.5,  # pyright: ignore[reportArgumentType]
            power=2,
        ),
        "polynomial_schedule: power must be positive, got 0.": lambda: optim.polynomial_schedule(1, 0, 5, power=0),
        "cosine_schedule: warmup_steps must be at least 0 and below the 10 steps in all, got 10.": (
            lambda: optim.cosine_schedule(1, 10, warmup_steps=10)
        ),
        "one_cycle_schedule: rise must be above 0 and below 1, got 1.": lambda: optim.one_cycle_schedule(1, 9, rise=1),
        "one_cycle_schedule: rise must be above 0 and below 0.5, got 0.6.": (
            lambda: optim.one_cycle_schedule(1, 9, rise=0.6, three_phases=True)
        ),
        "one_cycle_schedule: 3 steps are too few for a rise of 0.3.": lambda: optim.one_cycle_schedule(1, 3),
        "exponential_schedule: rate must be positive, got 0.": lambda: optim.exponential_schedule(1, 0),
        "join_schedules: 1 boundaries need 2 schedules, got 1.": (
            lambda: optim.join_schedules([optim.constant_schedule(1)], [3])
        ),
        "piecewise_schedule: 1 boundaries need 2 values, got 1.": lambda: optim.piecewise_schedule([1.0], [3]),
        "piecewise_schedule: boundaries must be positive and grow, got [3, 3].": (
            lambda: optim.piecewise_schedule([1.0, 2.0, 3.0], [3, 3])
        ),
    }
    for text, call in cases.items():
        with pytest.raises(ArgumentError) as error:
            call()
        assert str(error.value) == text
