"""The numbers that an optimiser is given: floats, tensors (which may be differentiated), or schedules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from purenn._modes import is_traced
from purenn.errors import ArgumentError

Schedule = Callable[[Any], Any]
Hyperparameter = float | Tensor | Schedule
#: The values of one step by name: floats, tensors without dimensions, or booleans.
Values = dict[str, Any]


def is_zero(value: Hyperparameter) -> bool:
    """Whether a hyper-parameter is the number zero, so that what it scales can be left out."""
    return isinstance(value, (int, float)) and value == 0


def require_number(optimizer: str, **given: Any) -> None:
    """Refuse what is no hyper-parameter.

    Raises:
        ArgumentError: a value is neither a number, nor a floating tensor without dimensions, nor callable.
    """
    for name, value in given.items():
        if isinstance(value, Tensor):
            if value.dim() or not value.is_floating_point():
                dtype = str(value.dtype).removeprefix("torch.")
                raise ArgumentError(
                    f"{optimizer}: {name} as a tensor must be floating and without dimensions, got {dtype} of shape "
                    f"{list(value.shape)}."
                )
        elif isinstance(value, bool) or not (isinstance(value, (int, float)) or callable(value)):
            raise ArgumentError(
                f"{optimizer}: {name} must be a number, a tensor or a schedule (a function of the number of steps "
                f"done), got {value!r}."
            )


def require_not_negative(optimizer: str, **given: Any) -> None:
    """Refuse what is no hyper-parameter, and negative numbers.

    Raises:
        ArgumentError: there is one.
    """
    require_number(optimizer, **given)
    for name, value in given.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise ArgumentError(f"{optimizer}: {name} must not be negative, got {value}.")


def require_fraction(optimizer: str, **given: Any) -> None:
    """Refuse what is no hyper-parameter, and numbers outside of [0, 1).

    Raises:
        ArgumentError: there is one.
    """
    require_number(optimizer, **given)
    for name, value in given.items():
        if isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ArgumentError(f"{optimizer}: {name} must be at least 0 and below 1, got {value}.")


def require_betas(optimizer: str, betas: Any) -> None:
    """Refuse all but a pair of hyper-parameters in [0, 1).

    Raises:
        ArgumentError: it is something else.
    """
    if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
        raise ArgumentError(f"{optimizer}: betas must be a pair of numbers, got {betas!r}.")
    for value in betas:
        require_number(optimizer, betas=value)
        if isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ArgumentError(f"{optimizer}: both betas must be at least 0 and below 1, got {betas}.")


def as_number(count: Tensor) -> Any:
    """The number of steps done: a Python int if that costs nothing, a float64 tensor otherwise."""
    plain = not is_traced() and type(count) is Tensor and not is_functorch_wrapped_tensor(count)
    if plain and count.is_cpu and not count.dim():
        return int(count)
    return count.to(torch.float64)


def values_at(given: dict[str, Hyperparameter], done: Any) -> Values:
    """The values of hyper-parameters after `done` steps, tensors in float64: 1 - 0.999 needs its digits."""
    return {name: value if type(value) is float else _value_at(value, done) for name, value in given.items()}


def _value_at(given: Hyperparameter, done: Any) -> Any:
    value = given(done) if callable(given) else given
    return value.to(torch.float64) if isinstance(value, Tensor) else value


def on_device(values: Values, device: torch.device) -> Values:
    """The values with their tensors on a device."""
    # Not in another dtype: a tensor without dimensions does not widen others.
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def where(condition: Any, yes: Any, no: Any) -> Any:
    """One of two values, by a boolean or by a tensor of booleans."""
    if isinstance(condition, Tensor):
        if not isinstance(yes, Tensor) and not isinstance(no, Tensor):
            yes = torch.as_tensor(yes, dtype=torch.float64, device=condition.device)
        return torch.where(condition, yes, no)
    return yes if condition else no
