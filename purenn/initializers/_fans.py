"""What the scaled initializers scale by: the fans of a weight, and the gain of a nonlinearity."""

import math
from typing import Literal, TypeAlias

from purenn.errors import ArgumentError
from purenn.initializers._arguments import Shape, check_number
from purenn.random._arguments import check_shape

Nonlinearity: TypeAlias = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
]

_LEAKY_SLOPE = 0.01

_GAINS: dict[str, float] = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "conv_transpose1d": 1.0,
    "conv_transpose2d": 1.0,
    "conv_transpose3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "leaky_relu": math.sqrt(2 / (1 + _LEAKY_SLOPE**2)),
    "selu": 3 / 4,
}


def calculate_gain(nonlinearity: Nonlinearity, param: float | None = None) -> float:
    """By how much larger weights have to be because a nonlinearity follows (or comes before) them.

    The factors are torch's: 1 for linear maps, convolutions and sigmoid, 5/3 for tanh, sqrt(2) for relu,
    sqrt(2 / (1 + slope^2)) for leaky_relu (He et al., "Delving deep into rectifiers", 2015) and 3/4 for selu.
    A self-normalizing network wants "linear" in place of "selu", for weights of variance 1 / fan_in.

    Args:
        nonlinearity: The name of the function in `torch.nn.functional`.
        param: The negative slope of "leaky_relu", 0.01 if None. The others have none and do not look at it.

    Raises:
        ArgumentError: When `nonlinearity` is not one of those names, or the slope not a finite number.

    Example:
        >>> calculate_gain("leaky_relu", 1.0)
        1.0
    """
    if nonlinearity not in _GAINS:
        raise ArgumentError(f"nonlinearity must be one of {', '.join(_GAINS)}, not {nonlinearity!r}")
    if nonlinearity == "leaky_relu" and param is not None:
        check_number("the negative slope of leaky_relu", param)
        return math.sqrt(2 / (1 + param**2))
    return _GAINS[nonlinearity]


def fan_in_and_fan_out(shape: Shape) -> tuple[int, int]:
    """How many inputs one output of a layer is made of, and how many outputs one input goes into.

    Args:
        shape: Of the weight, ``(out_features, in_features)`` or ``(out_channels, in_channels, *kernel)``; each channel
            counts as many times as the kernel has elements.

    Raises:
        ArgumentError: When `shape` is not a shape of two dimensions or more.

    Example:
        >>> fan_in_and_fan_out((16, 3, 5, 5))
        (75, 400)
    """
    sizes = check_shape(shape)
    if len(sizes) < 2:
        raise ArgumentError(
            "shape must have 2 dimensions or more, (out_features, in_features, *kernel), to have a fan-in and a "
            f"fan-out, not {list(sizes)}; for a bias use zeros, uniform, or fan_in_uniform with the weight's fan_in"
        )
    out_features, in_features, *kernel = sizes
    elements = math.prod(kernel)
    return in_features * elements, out_features * elements
