"""Initializers that draw from a distribution with given parameters."""

import torch
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.initializers._arguments import Device, Shape, check_number, drawn
from purenn.random._words import compute_dtype, normal_distribution


def uniform(
    key: Tensor,
    shape: Shape,
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Numbers spread evenly between two bounds.

    Args:
        key: A random key.
        shape: The result's.
        low: The lower bound.
        high: The upper bound.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When `key`, `shape` or `dtype` is not as above, or unless low <= high, both finite.
    """
    check_number("low", low)
    check_number("high", high)
    if low > high:
        raise ArgumentError(f"low must be at most high, not low={low!r} and high={high!r}")
    return drawn(
        key, shape, dtype, device, lambda key, sizes, dtype: random.uniform(key, sizes, low=low, high=high, dtype=dtype)
    )


def normal(
    key: Tensor,
    shape: Shape,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Normally distributed numbers.

    Args:
        key: A random key.
        shape: The result's.
        mean: The distribution's mean.
        std: The distribution's standard deviation, at least 0.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When `key`, `shape` or `dtype` is not as above, `mean` not finite, or `std` negative or not
            finite.
    """
    check_number("mean", mean)
    check_number("std", std, least=0)
    return drawn(
        key,
        shape,
        dtype,
        device,
        lambda key, sizes, dtype: random.normal(key, sizes, dtype=compute_dtype(dtype)).mul_(std).add_(mean),
    )


def trunc_normal(
    key: Tensor,
    shape: Shape,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Normally distributed numbers on the condition that they lie between two bounds.

    Args:
        key: A random key.
        shape: The result's.
        mean: The mean before truncation.
        std: The standard deviation before truncation, more than 0.
        a: The lower bound, in the units of the numbers (not of `std`); may be ``-math.inf``.
        b: The upper bound, in the same units; may be ``math.inf``.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None. In a short dtype the bounds count
            as rounded to it.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When `key`, `shape` or `dtype` is not as above, `mean` not finite, `std` not finite or not more
            than 0, unless a < b, or when no float64 lies between the bounds because both are on one side of the mean
            and more than 38 standard deviations from it.
    """
    check_number("mean", mean)
    check_number("std", std)
    if std <= 0:
        raise ArgumentError(f"std must be more than 0, not {std!r}; for one value everywhere use constant")
    if not a < b:
        raise ArgumentError(f"a must be less than b, not a={a!r} and b={b!r}")
    lower, upper = (a - mean) / std, (b - mean) / std
    if not lower < upper or normal_distribution(-max(lower, -upper)) == 0:
        raise ArgumentError(
            f"a={a!r} and b={b!r} lie where the normal distribution with mean={mean!r} and std={std!r} has no weight "
            "left in float64; choose bounds of which one is within 38 std of the mean"
        )

    def draw(key: Tensor, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        numbers = random.truncated_normal(key, sizes, lower=lower, upper=upper, dtype=compute_dtype(dtype))
        # The product and the sum round, which may lead past a bound.
        return numbers.mul_(std).add_(mean).clamp(a, b)

    return drawn(key, shape, dtype, device, draw)
