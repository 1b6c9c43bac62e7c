"""Logarithm, square root and points on the circle, from sums, products and quotients alone.

torch's own log, sqrt, sin and cos differ in their last bits between CPU and CUDA, between the vector and the tail lanes
of one kernel, or between eager and compiled code. Sums, products and quotients do not: IEEE 754 fixes every bit of
them. So the draws use series, whose coefficients are written as the mathematics gives them.
"""

import math
from typing import Any

import torch
from torch import Tensor, library

# Of a float dtype: the integer dtype of its size, its number of mantissa bits, and sqrt(1/2) and 1 read as integers.
_BIT_LAYOUT = {
    torch.float32: (torch.int32, 23, 0x3F3504F3, 0x3F800000),
    torch.float64: (torch.int64, 52, 0x3FE6A09E667F3BCD, 0x3FF0000000000000),
}

# How many terms leave an error below a quarter of the dtype's rounding: of atanh(s)/s at its largest s, 3 - 2 sqrt 2,
# and of cos(pi/2 t) and sin(pi/2 t)/t at t = 1.
_SERIES_TERMS = {torch.float32: (5, 7), torch.float64: (10, 11)}

_LOGARITHM = {dtype: [2 / (2 * k + 1) for k in range(terms)] for dtype, (terms, _) in _SERIES_TERMS.items()}
_COSINE = {
    dtype: [(-1) ** k * (math.pi / 2) ** (2 * k) / math.factorial(2 * k) for k in range(terms)]
    for dtype, (_, terms) in _SERIES_TERMS.items()
}
_SINE = {
    dtype: [(-1) ** k * (math.pi / 2) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(terms)]
    for dtype, (_, terms) in _SERIES_TERMS.items()
}
_HERON_STEPS = {torch.float32: 3, torch.float64: 4}


def logarithm(x: Tensor, excess: Tensor | None = None) -> Tensor:
    """The natural logarithm of positive normal floats, to a few units in the last place.

    ``x = 2^e m`` with ``sqrt(1/2) <= m < sqrt(2)``, and ``log m = 2 atanh((m - 1)/(m + 1))``.

    Args:
        x: float32 or float64.
        excess: ``x - 1`` where it is known better than x itself is: makes the result exact near x = 1.
    """
    integer_dtype, mantissa_bits, root_half, _ = _BIT_LAYOUT[x.dtype]
    bits = x.view(integer_dtype) - root_half
    exponent = bits >> mantissa_bits
    mantissa = ((bits & ((1 << mantissa_bits) - 1)) + root_half).view(x.dtype)
    numerator = mantissa - 1
    if excess is not None:
        numerator = torch.where(exponent == 0, excess, numerator)
    s = numerator.div_(mantissa + 1)
    return _polynomial(s * s, _LOGARITHM[x.dtype]).mul_(s).add_(exponent.to(x.dtype).mul_(math.log(2)))


def square_root(x: Tensor) -> Tensor:
    """The square root of positive normal floats, to a unit in the last place.

    Halving the exponent is right to 6%; each step of Heron's method squares that error and halves it.
    """
    integer_dtype, _, _, one = _BIT_LAYOUT[x.dtype]
    root = ((x.view(integer_dtype) >> 1) + (one >> 1)).view(x.dtype)
    for _ in range(_HERON_STEPS[x.dtype]):
        root = (x / root).add_(root).mul_(0.5)
    return root


def circle(turn: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``pi * turn`` for -1 <= turn <= 1.

    The series run over half the angle, where they are short; the double-angle formulas do the rest.
    """
    square = turn * turn
    cosine = _polynomial(square, _COSINE[turn.dtype])
    sine = _polynomial(square, _SINE[turn.dtype]).mul_(turn)
    double_cosine = (cosine * cosine).sub_(sine * sine)
    return double_cosine, sine.mul_(cosine).mul_(2)


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    *lower, highest = coefficients
    # Multiplication and addition apart: a fused one would round differently where the hardware has it.
    result = x * highest
    for coefficient in reversed(lower[1:]):
        result.add_(coefficient).mul_(x)
    return result.add_(lower[0])


def _view_under_vmap(info: Any, in_dims: tuple[int, None], x: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    if dtype.itemsize != x.dtype.itemsize:
        raise RuntimeError("Batching rule not implemented for aten::view.dtype between dtypes of different sizes")
    return x.view(dtype), in_dims[0]


# torch 2.11 has no batching rule for reading bits as another dtype; 2.13 has one.
if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::view.dtype", "FuncTorchBatched"):
    library.register_vmap("aten::view.dtype", _view_under_vmap)
