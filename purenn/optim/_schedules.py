"""Schedules: pure functions of the number of steps done.

Given a Python number they return a float, given a tensor a tensor: floating ones keep their dtype, integers become
float64. So the same schedule serves an eager loop, a compiled one, and a batch of models that are at different steps.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._hyperparameters import Schedule, where

Value = float | Tensor


def constant_schedule(value: Value) -> Schedule:
    """Always the same value."""
    return lambda step: value + 0 * _real(step)


def linear_schedule(start: Value, end: Value, steps: int) -> Schedule:
    """In a straight line from `start` to `end` in some steps, then `end`; `torch.optim.lr_scheduler.LinearLR`.

    Raises:
        ArgumentError: less than one step.
    """
    return polynomial_schedule(start, end, steps)


def polynomial_schedule(start: Value, end: Value, steps: int, *, power: float = 1.0) -> Schedule:
    """``end + (start - end) (1 - step / steps) ** power``, then `end`; `torch.optim.lr_scheduler.PolynomialLR`.

    Raises:
        ArgumentError: less than one step, or a power that is not positive.
    """
    _require_steps("polynomial_schedule" if power != 1 else "linear_schedule", steps)
    if not power > 0:
        raise ArgumentError(f"polynomial_schedule: power must be positive, got {power}.")
    return lambda step: end + (start - end) * (1 - _share(step, steps)) ** power


def cosine_schedule(
    peak: Value, steps: int, *, warmup_steps: int = 0, start: Value = 0.0, end: Value = 0.0
) -> Schedule:
    """In a straight line from `start` to `peak`, then along half a cosine to `end`, then `end`.

    Without warm-up it is `torch.optim.lr_scheduler.CosineAnnealingLR`.

    Args:
        peak: the largest value.
        steps: the number of steps until `end` is reached, those of the warm-up included.
        warmup_steps: the number of steps of the warm-up. Default: 0.
        start: the value before the warm-up. Default: 0.
        end: the value after all steps. Default: 0.

    Raises:
        ArgumentError: not more steps than those of the warm-up.

    Source:
        Loshchilov, Hutter: SGDR, Stochastic Gradient Descent with Warm Restarts, 2017, equation 5.

    Example:
        >>> import purenn as pn
        >>> schedule = pn.optim.cosine_schedule(0.1, 100, warmup_steps=10)
        >>> [round(schedule(step), 3) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    _require_steps("cosine_schedule", steps)
    if not 0 <= warmup_steps < steps:
        raise ArgumentError(
            f"cosine_schedule: warmup_steps must be at least 0 and below the {steps} steps in all, got {warmup_steps}."
        )

    def at(step: Any) -> Any:
        down = _cosine(peak, end, _share(step - warmup_steps, steps - warmup_steps))
        if not warmup_steps:
            return down
        return where(step < warmup_steps, start + (peak - start) * _share(step, warmup_steps), down)

    return at


def one_cycle_schedule(
    peak: Value,
    steps: int,
    *,
    rise: float = 0.3,
    start_factor: float = 25.0,
    end_factor: float = 1e4,
    linear: bool = False,
    three_phases: bool = False,
) -> Schedule:
    """Up to `peak` and down again, far below the start; the same values as `torch.optim.lr_scheduler.OneCycleLR`.

    Args:
        peak: the largest value.
        steps: the number of steps in all; the end is reached in the last one.
        rise: the share of the steps that go up. Default: 0.3.
        start_factor: the first value is the peak divided by this. Default: 25.
        end_factor: the last value is the first one divided by this. Default: 1e4.
        linear: whether to go in straight lines instead of half cosines. Default: False.
        three_phases: whether to come down to the first value as fast as it went up, and only then to the last one.
            Default: False.

    Raises:
        ArgumentError: too few steps for the phases, or a share that is none.

    Source:
        Smith, Topin: Super-Convergence, Very Fast Training of Neural Networks Using Large Learning Rates, 2018.
    """
    _require_steps("one_cycle_schedule", steps)
    if not 0 < rise < (0.5 if three_phases else 1):
        raise ArgumentError(
            f"one_cycle_schedule: rise must be above 0 and below {0.5 if three_phases else 1}, got {rise}."
        )
    first = peak / start_factor
    last = first / end_factor
    top = rise * steps - 1
    corners: list[tuple[float, Value]] = [(0, first), (top, peak), (steps - 1, last)]
    if three_phases:
        corners.insert(2, (2 * top, first))
    if top <= 0 or corners[-2][0] >= steps - 1:
        raise ArgumentError(f"one_cycle_schedule: {steps} steps are too few for a rise of {rise}.")
    move = _straight if linear else _cosine

    def at(step: Any) -> Any:
        step, value = _real(step), last
        for (begin, one), (end, other) in reversed(list(itertools.pairwise(corners))):
            value = where(step <= end, move(one, other, _share(step - begin, end - begin)), value)
        return value

    return at


def piecewise_schedule(values: Sequence[Value], boundaries: Sequence[int]) -> Schedule:
    """``values[0]``, from the first boundary on ``values[1]``, and so on; `torch.optim.lr_scheduler.MultiStepLR`.

    Raises:
        ArgumentError: not one value more than boundaries, or boundaries that do not grow.
    """
    return join_schedules([constant_schedule(value) for value in values], boundaries, _name="piecewise_schedule")


def exponential_schedule(
    start: Value, rate: Value, *, steps: int = 1, staircase: bool = False, end: Value | None = None
) -> Schedule:
    """``start rate ** (step / steps)``; `torch.optim.lr_scheduler.ExponentialLR`.

    Args:
        start: the first value.
        rate: the factor in `steps` steps.
        steps: the number of steps in which the value changes by the factor `rate`. Default: 1.
        staircase: whether to change every `steps` steps only, as `torch.optim.lr_scheduler.StepLR`. Default: False.
        end: where to stop; None for no limit. Default: None.

    Raises:
        ArgumentError: less than one step, or a rate that is not positive.
    """
    _require_steps("exponential_schedule", steps)
    if isinstance(rate, (int, float)) and not rate > 0:
        raise ArgumentError(f"exponential_schedule: rate must be positive, got {rate}.")

    def at(step: Any) -> Any:
        times = _real(step) / steps
        if staircase:
            times = torch.floor(times) if isinstance(times, Tensor) else math.floor(times)
        value = start * _power(rate, times)
        if end is None:
            return value
        beyond = where(end < start, value < end, value > end)
        # A power that is not used may be infinite, but its derivative must exist.
        return where(beyond, end, start * _power(rate, where(beyond, 0.0, times)))

    return at


def join_schedules(
    schedules: Sequence[Schedule], boundaries: Sequence[int], *, _name: str = "join_schedules"
) -> Schedule:
    """One schedule until the first boundary, the next one from there on; `torch.optim.lr_scheduler.SequentialLR`.

    Args:
        schedules: each counts the steps from its own beginning.
        boundaries: the first steps of all schedules but the first one.

    Raises:
        ArgumentError: not one schedule more than boundaries, or boundaries that do not grow.
    """
    if len(schedules) != len(boundaries) + 1:
        what = "schedules" if _name == "join_schedules" else "values"
        raise ArgumentError(
            f"{_name}: {len(boundaries)} boundaries need {len(boundaries) + 1} {what}, got {len(schedules)}."
        )
    starts = [0, *boundaries]
    if any(second <= first for first, second in zip(starts, boundaries, strict=False)):
        raise ArgumentError(f"{_name}: boundaries must be positive and grow, got {list(boundaries)}.")

    def at(step: Any) -> Any:
        if not isinstance(step, Tensor):
            number = sum(step >= boundary for boundary in boundaries)
            return schedules[number](step - starts[number])
        # All schedules are asked, but for their beginning where it is not their turn: they may not be defined there.
        value = None
        for schedule, start, end in zip(schedules, starts, [*boundaries, math.inf], strict=True):
            turn = (step >= start if start else True) & (step < end)
            found = schedule(torch.where(turn, step - start, 0))
            value = where(turn, found, value) if start else found
        return value

    return at


def _require_steps(name: str, steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"{name}: steps must be an integer of at least 1, got {steps!r}.")


def _real(step: Any) -> Any:
    if isinstance(step, Tensor):
        return step if step.is_floating_point() else step.to(torch.float64)
    return float(step)


def _share(step: Any, steps: float) -> Any:
    # How much of some steps is done, between 0 and 1.
    step = _real(step) / steps
    return step.clamp(0, 1) if isinstance(step, Tensor) else min(max(step, 0.0), 1.0)


def _power(base: Value, exponent: Any) -> Any:
    try:
        return base**exponent
    except OverflowError:  # of Python's numbers; a tensor is infinite then
        return math.inf


def _straight(start: Value, end: Value, share: Any) -> Any:
    return start + (end - start) * share


def _cosine(start: Value, end: Value, share: Any) -> Any:
    cosine = torch.cos(math.pi * share) if isinstance(share, Tensor) else math.cos(math.pi * share)
    return end + (start - end) * (1 + cosine) / 2
