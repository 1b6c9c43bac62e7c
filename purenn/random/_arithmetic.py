"""Logarithm, square root and points on the circle, from sums, products and quotients alone.

torch's own log, sqrt, sin and cos differ in their last bits between CPU and CUDA, between the vector and the tail lanes
of one kernel, or between eager and compiled code. Sums, products and quotients do not: IEEE 754 fixes every bit of
them. So the draws use series, whose coefficients are written as the mathematics gives them. For the same reason numpy,
which needs less time for few numbers, gives the bits that torch gives: everything here takes tensors and arrays alike.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
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

# Coefficients by size: numbers for torch, and arrays without dimensions, which cost numpy half as much.
_Series: TypeAlias = dict[int, tuple[list[float], list[np.ndarray]]]


def _series(coefficient: Callable[[int], float], single_terms: int, double_terms: int) -> _Series:
    floats = {
        size: [coefficient(k) for k in range(n)] for size, n in ((_SINGLE, single_terms), (_DOUBLE, double_terms))
    }
    return {size: (terms, [np.array(term, f"f{size}") for term in terms]) for size, terms in floats.items()}


# Of atanh(s)/s, of cos(pi/2 t) and of sin(pi/2 t)/t, in the square. So many terms leave an error below a quarter of the
# dtype's rounding at the largest s, 3 - 2 sqrt 2, and at t = 1.
_LOGARITHM = _series(lambda k: 2 / (2 * k + 1), 5, 10)
_COSINE = _series(lambda k: (-1) ** k * (math.pi / 2) ** (2 * k) / math.factorial(2 * k), 7, 11)
_SINE = _series(lambda k: (-1) ** k * (math.pi / 2) ** (2 * k + 1) / math.factorial(2 * k + 1), 7, 11)
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
    result = _polynomial(s * s, _LOGARITHM)
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
    square = turn * turn
    cosine = _polynomial(square, _COSINE)
    sine = _polynomial(square, _SINE)
    sine *= turn
    double_cosine = cosine * cosine
    double_cosine -= sine * sine
    sine *= cosine
    sine *= 2
    return double_cosine, sine


def _polynomial(x: Array, series: _Series) -> Array:
    numbers, arrays = series[x.dtype.itemsize]
    coefficients: list[Any] = numbers if isinstance(x, Tensor) else arrays
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
