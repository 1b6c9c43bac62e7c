"""Initializers whose scale follows from the shape of the weight, so that signals neither grow nor fade."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.initializers._arguments import Device, Shape, check_number
from purenn.initializers._drawn import normal, trunc_normal, uniform
from purenn.initializers._fans import Nonlinearity, calculate_gain, fan_in_and_fan_out

FanMode: TypeAlias = Literal["fan_in", "fan_out"]
Distribution: TypeAlias = Literal["truncated_normal", "normal", "uniform"]

_DISTRIBUTIONS = ("truncated_normal", "normal", "uniform")

# The standard deviation of a standard normal number on the condition that it lies in [-2, 2].
_TRUNCATED_STD = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def xavier_uniform(
    key: Tensor, shape: Shape, *, gain: float = 1.0, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """U(-bound, bound) with ``bound = gain * sqrt(6 / (fan_in + fan_out))``.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.

    Args:
        key: A random key.
        shape: Of the weight, ``(out_features, in_features, *kernel)``.
        gain: A factor, at least 0; see `calculate_gain`.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When `key`, `shape`, `gain` or `dtype` is not as above.
    """
    return _with_std(key, shape, "uniform", _xavier_std(shape, gain), dtype, device)


def xavier_normal(
    key: Tensor, shape: Shape, *, gain: float = 1.0, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """N(0, std^2) with ``std = gain * sqrt(2 / (fan_in + fan_out))``.

    Arguments, errors and source are those of `xavier_uniform`.
    """
    return _with_std(key, shape, "normal", _xavier_std(shape, gain), dtype, device)


def kaiming_uniform(
    key: Tensor,
    shape: Shape,
    *,
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """U(-bound, bound) with ``bound = gain * sqrt(3 / fan)``.

    He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015.

    Args:
        key: A random key.
        shape: Of the weight, ``(out_features, in_features, *kernel)``.
        a: The negative slope of "leaky_relu"; the others do not look at it.
        mode: "fan_in" keeps the variance of the signals on their way forward, "fan_out" that of the gradients on
            their way back.
        nonlinearity: The one whose gain is taken; see `calculate_gain`.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When an argument is not as above.
    """
    return _with_std(key, shape, "uniform", _kaiming_std(shape, a, mode, nonlinearity), dtype, device)


def kaiming_normal(
    key: Tensor,
    shape: Shape,
    *,
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """N(0, std^2) with ``std = gain / sqrt(fan)``.

    Arguments, errors and source are those of `kaiming_uniform`.
    """
    return _with_std(key, shape, "normal", _kaiming_std(shape, a, mode, nonlinearity), dtype, device)


def lecun_uniform(key: Tensor, shape: Shape, *, dtype: torch.dtype | None = None, device: Device = None) -> Tensor:
    """U(-bound, bound) with ``bound = sqrt(3 / fan_in)``, which has the variance ``1 / fan_in``.

    LeCun, Bottou, Orr and Müller, "Efficient backprop", 1998. Klambauer et al., "Self-normalizing neural networks",
    2017, ask for this variance.

    Args:
        key: A random key.
        shape: Of the weight, ``(out_features, in_features, *kernel)``.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When an argument is not as above.
    """
    return variance_scaling(key, shape, distribution="uniform", dtype=dtype, device=device)


def lecun_normal(key: Tensor, shape: Shape, *, dtype: torch.dtype | None = None, device: Device = None) -> Tensor:
    """N(0, 1 / fan_in), not truncated; for a truncated one see `variance_scaling`.

    Arguments, errors and sources are those of `lecun_uniform`.
    """
    return variance_scaling(key, shape, distribution="normal", dtype=dtype, device=device)


def variance_scaling(
    key: Tensor,
    shape: Shape,
    *,
    scale: float = 1.0,
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in",
    distribution: Distribution = "truncated_normal",
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Numbers of mean 0 and variance ``scale / fan``: the family to which the other scaled initializers belong.

    Args:
        key: A random key.
        shape: Of the weight, ``(out_features, in_features, *kernel)``.
        scale: The factor, at least 0: the square of a gain.
        mode: Which fan: "fan_in", "fan_out", or "fan_avg" for the mean of the two.
        distribution: "uniform", "normal", or "truncated_normal": a normal distribution cut off at two of its standard
            deviations, which is widened so that the variance holds after the cut.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When an argument is not as above.
    """
    check_number("scale", scale, least=0)
    if distribution not in _DISTRIBUTIONS:
        raise ArgumentError(f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, not {distribution!r}")
    fans = _fans(shape)
    fan = _choose(mode, {**fans, "fan_avg": (fans["fan_in"] + fans["fan_out"]) / 2})
    return _with_std(key, shape, distribution, math.sqrt(scale / fan), dtype, device)


def fan_in_uniform(
    key: Tensor,
    shape: Shape,
    *,
    fan_in: int | None = None,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """U(-bound, bound) with ``bound = 1 / sqrt(fan_in)``: how torch's linear layers and convolutions start.

    Args:
        key: A random key.
        shape: Of the weight, ``(out_features, in_features, *kernel)``; with `fan_in` given any shape, a bias's for
            example.
        fan_in: The fan-in of the weight; that of `shape` if None. A fan-in of 0 gives zeros.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When an argument is not as above.
    """
    if fan_in is None:
        fan_in, _ = fan_in_and_fan_out(shape)
    elif not isinstance(fan_in, int | torch.SymInt) or fan_in < 0:
        raise ArgumentError(f"fan_in must be an int of at least 0 or None, not {fan_in!r}")
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return uniform(key, shape, low=-bound, high=bound, dtype=dtype, device=device)


def _with_std(
    key: Tensor, shape: Shape, distribution: Distribution, std: float, dtype: torch.dtype | None, device: Device
) -> Tensor:
    if distribution == "uniform":
        bound = math.sqrt(3) * std
        return uniform(key, shape, low=-bound, high=bound, dtype=dtype, device=device)
    if distribution == "normal" or std == 0:
        return normal(key, shape, std=std, dtype=dtype, device=device)
    std = std / _TRUNCATED_STD
    return trunc_normal(key, shape, std=std, a=-2 * std, b=2 * std, dtype=dtype, device=device)


def _xavier_std(shape: Shape, gain: float) -> float:
    check_number("gain", gain, least=0)
    return gain * math.sqrt(2 / sum(_fans(shape).values()))


def _kaiming_std(shape: Shape, a: float, mode: FanMode, nonlinearity: Nonlinearity) -> float:
    gain = calculate_gain(nonlinearity, a)
    return gain / math.sqrt(_choose(mode, _fans(shape)))


def _fans(shape: Shape) -> dict[str, float]:
    fan_in, fan_out = fan_in_and_fan_out(shape)
    # A fan is 0 only where there is nothing to draw.
    return {"fan_in": max(fan_in, 1), "fan_out": max(fan_out, 1)}


def _choose(mode: str, fans: dict[str, float]) -> float:
    if mode not in fans:
        raise ArgumentError(f"mode must be one of {', '.join(fans)}, not {mode!r}")
    return fans[mode]
