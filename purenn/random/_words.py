"""From words to floats: what the draws share. Each takes words as `generate` hands them over."""

import math

import torch
from torch import Tensor

from purenn.random._arithmetic import circle, logarithm, square_root

# How many random bits a number of each dtype carries: as many as its significand holds.
SIGNIFICANT_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where a draw computes: short floats in float32, rounded once at the end, so that every backend rounds alike."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def uniform_floats(even: Tensor, odd: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Multiples of 2^-p in [0, 1), exact in a dtype of p significant bits: float64 from two words, others from one."""
    bits = SIGNIFICANT_BITS[dtype]
    if dtype == torch.float64:
        return (((even << 21) | (odd >> 11)).to(dtype).mul_(2.0**-bits),)
    return tuple((word >> (32 - bits)).to(torch.float32).mul_(2.0**-bits) for word in (even, odd))


def open_unit_floats(even: Tensor, odd: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Numbers in (0, 1), fine near 0: ``(n + 1/2) 2^-53`` of two words (float64), or ``(n + 1/2) 2^-32`` of one."""
    if dtype == torch.float64:
        units = [((even << 21) | (odd >> 11)).to(dtype).add_(0.5).mul_(2.0**-53)]
    else:
        units = [word.to(dtype).add_(0.5).mul_(2.0**-32) for word in (even, odd)]
    # The sum may round up to 1.
    return tuple(unit.clamp(max=1 - 2.0 ** -SIGNIFICANT_BITS[dtype]) for unit in units)


def normal_floats(even: Tensor, odd: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Standard normal numbers by the polar form of Box and Muller 1958: radius and angle give two numbers.

    Only correctly rounded operations, so the bits do not depend on device or grouping. In float32 a word gives the
    radius, up to 6.76, and a word the angle; in float64 two words each, with a radius up to 8.65.
    """
    if dtype == torch.float64:
        unit, other_unit = open_unit_floats(even, odd, dtype)[0].unbind()
    else:
        unit, other_unit = open_unit_floats(even, odd, dtype)
    turn = other_unit * 2 - 1
    radius = square_root(logarithm(unit).mul_(-2))
    cosine, sine = circle(turn)
    return cosine.mul_(radius), sine.mul_(radius)


def gumbel_floats(even: Tensor, odd: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Standard Gumbel numbers, ``-log(-log(1 - u))``, with u as fine as the words near 0, where the maximum is won."""
    return tuple(logarithm(logarithm(1 - unit, -unit).neg_()).neg_() for unit in open_unit_floats(even, odd, dtype))


def truncated_normal_floats(even: Tensor, odd: Tensor, lower: float, upper: float) -> tuple[Tensor]:
    """Standard normal numbers between two bounds, by the inverse of the distribution function, in float64.

    The inverse is torch's, so devices may differ by its rounding error (about 1e-15), which rounding to a shorter
    dtype hides but for about one float32 number in 10^8.
    """
    # In the upper tail the distribution function is too close to 1 to tell numbers apart; its mirror image is not.
    mirrored = lower > 0
    start, stop = (normal_distribution(bound) for bound in ((-upper, -lower) if mirrored else (lower, upper)))
    (unit,) = open_unit_floats(even, odd, torch.float64)
    numbers = torch.special.ndtri(unit.mul_(stop - start).add_(start))
    return ((numbers.neg_() if mirrored else numbers).clamp(lower, upper),)


def normal_distribution(x: float) -> float:
    """The probability that a standard normal number is at most x, accurate in the lower tail."""
    return math.erfc(-x / math.sqrt(2)) / 2
