"""Logarithm, square root and points on the circle, from sums, products and quotients alone.

torch's own log, sqrt, sin and cos differ in their last bits between CPU and CUDA, between the vector and the tail lanes
of one kernel, or between eager and compiled code. Sums, products and quotients do not: IEEE 754 fixes every bit of
them. So the draws use series, whose coefficients are written as the mathematics gives them. For the same reason numpy,
which needs less time for few numbers, gives the bits that torch gives: everything here takes tensors and arrays alike.
"""

import math
from typing import Any

import torch
from torch import Tensor, library

from purenn.random._arrays import Array, cast, read_as, where

# All constants belong to a float dtype by its bytes, which torch and numpy call alike.
_SINGLE, _DOUBLE = 4, 8

# The dtype and the integer dtype of its size, its number of mantissa bits, and sqrt(1/2) and 1 read as integers.
_BIT_LAYOUT = {
    _SINGLE: (torch.float32, torch.int32, 23, 0x3F3504F3, 0x3F800000),
    _DOUBLE: (torch.float64, torch.int64, 52, 0x3FE6A09E667F3BCD, 0x3FF0000000000000),
}

# How many terms leave an error below a quarter of the dtype's rounding: of atanh(s)/s at its largest s, 3 - 2 sqrt 2,
# and of cos(pi/2 t) and sin(pi/2 t)/t at t = 1.
_SERIES_TERMS = {_SINGLE: (5, 7), _DOUBLE: (10, 11)}

_LOGARITHM = {size: [2 / (2 * k + 1) for k in range(terms)] for size, (terms, _) in _SERIES_TERMS.items()}
_COSINE = {
    size: [(-1) ** k * (math.pi / 2) ** (2 * k) / math.factorial(2 * k) for k in range(terms)]
    for size, (_, terms) in _SERIES_TERMS.items()
}
_SINE = {
    size: [(-1) ** k * (math.pi / 2) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(terms)]
    for size, (_, terms) in _SERIES_TERMS.items()
}
_HERON_STEPS = {_SINGLE: 3, _DOUBLE: 4}


def logarithm(x: Array, excess: Array | None = None) -> Array:
    """The natural logarithm of positive normal floats, to a few units in the last place.

    ``x = 2^e m`` with ``sqrt(1/2) <= m < sqrt(2)``, and ``log m = 2 atanh((m - 1)/(m + 1))``.

    Args:
        x: float32 or float64.
        excess: ``x - 1`` where it is known better than x itself is: makes the result exact near x = 1.
    """
    size = x.dtype.itemsize
    dtype, integer_dtype, mantissa_bits, root_half, _ = _BIT_LAYOUT[size]
    bits = read_as(x, integer_dtype) - root_half
    exponent = bits >> mantissa_bits
    bits &= (1 << mantissa_bits) - 1
    bits += root_half
    mantissa = read_as(bits, dtype)
    s = mantissa - 1
    if excess is not None:
        s = where(exponent == 0, excess, s)
    s /= mantissa + 1
    result = _polynomial(s * s, _LOGARITHM[size])
    result *= s
    multiple = cast(exponent, dtype)
    multiple *= math.log(2)
    result += multiple
    return result


def square_root(x: Array) -> Array:
    """The square root of positive normal floats, to a unit in the last place.

    Halving the exponent is right to 6%; each step of Heron's method squares that error and halves it.
    """
    size = x.dtype.itemsize
    dtype, integer_dtype, _, _, one = _BIT_LAYOUT[size]
    root = read_as((read_as(x, integer_dtype) >> 1) + (one >> 1), dtype)
    for _ in range(_HERON_STEPS[size]):
        quotient = x / root
        root += quotient
        root *= 0.5
    return root


def circle(turn: Array) -> tuple[Array, Array]:
    """Cosine and sine of ``pi * turn`` for -1 <= turn <= 1.

    The series run over half the angle, where they are short; the double-angle formulas do the rest.
    """
    square, size = turn * turn, turn.dtype.itemsize
    cosine = _polynomial(square, _COSINE[size])
    sine = _polynomial(square, _SINE[size])
    sine *= turn
    double_cosine = cosine * cosine
    double_cosine -= sine * sine
    sine *= cosine
    sine *= 2
    return double_cosine, sine


def _polynomial(x: Array, coefficients: list[float]) -> Array:
    *lower, highest = coefficients
    # Multiplication and addition apart: a fused one would round differently where the hardware has it.
    result = x * highest
    for coefficient in reversed(lower[1:]):
        result += coefficient
        result *= x
    result += lower[0]
    return result


def _view_under_vmap(info: Any, in_dims: tuple[int, None], x: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    if dtype.itemsize != x.dtype.itemsize:
        raise RuntimeError("Batching rule not implemented for aten::view.dtype between dtypes of different sizes")
    return x.view(dtype), in_dims[0]


# torch 2.11 has no batching rule for reading bits as another dtype; 2.13 has one.
if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::view.dtype", "FuncTorchBatched"):
    library.register_vmap("aten::view.dtype", _view_under_vmap)
