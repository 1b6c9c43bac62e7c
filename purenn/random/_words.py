"""From words to floats: what the draws share. Each takes words of blocks and gives numbers, as a `Convert` does."""

import math

import torch
from torch import Tensor

from purenn.random._arithmetic import circle, logarithm, square_root
from purenn.random._arrays import Array, at_most, cast, halves, in_torch

# How many random bits a number of each dtype carries: as many as its significand holds.
SIGNIFICANT_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


# In standard deviations: farther out the normal distribution has too little weight for float64 to tell numbers apart.
FARTHEST_BOUND = 38
# The probabilities nearest to 0 and 1.
_FIRST_PROBABILITY, _LAST_PROBABILITY = math.nextafter(0, 1), math.nextafter(1, 0)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where a draw computes: short floats in float32, rounded once at the end, so that every backend rounds alike."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def uniform_floats(words: Array, dtype: torch.dtype) -> Array:
    """Multiples of 2^-p in [0, 1), exact in a dtype of p significant bits: float64 from two words, others from one."""
    bits = SIGNIFICANT_BITS[dtype]
    integers = _joined(words) if dtype == torch.float64 else words >> (32 - bits)
    numbers = cast(integers, compute_dtype(dtype))
    numbers *= 2.0**-bits
    return numbers


def open_unit_floats(words: Array, dtype: torch.dtype) -> Array:
    """Numbers in (0, 1), fine near 0: ``(n + 1/2) 2^-53`` of two words (float64), or ``(n + 1/2) 2^-32`` of one."""
    integers, bits = (_joined(words), 53) if dtype == torch.float64 else (words, 32)
    numbers = cast(integers, dtype)
    numbers += 0.5
    numbers *= 2.0**-bits
    # The sum may have been rounded up to 1.
    return at_most(numbers, 1 - 2.0 ** -SIGNIFICANT_BITS[dtype])


def _joined(words: Array) -> Array:
    """The 53 highest bits of each even word and the odd one after it."""
    even, odd = halves(words)
    return (even << 21) | (odd >> 11)


def normal_floats(words: Array, dtype: torch.dtype) -> tuple[Array, Array]:
    """Standard normal numbers by the polar form of Box and Muller 1958: radius and angle give two numbers.

    Only correctly rounded operations, so the bits do not depend on device or grouping. In float32 a word gives the
    radius, up to 6.76, and a word the angle; in float64 two words each, with a radius up to 8.65.
    """
    unit, other_unit = halves(open_unit_floats(words, dtype))
    radius = square_root(logarithm(unit) * -2)
    cosine, sine = circle(other_unit * 2 - 1)
    cosine *= radius
    sine *= radius
    return cosine, sine


def gumbel_floats(words: Array, dtype: torch.dtype) -> Array:
    """Standard Gumbel numbers, ``-log(-log(1 - u))``, with u as fine as the words near 0, where the maximum is won."""
    unit = open_unit_floats(words, dtype)
    return -logarithm(-logarithm(1 - unit, -unit))


def truncated_normal_floats(words: Array, lower: float, upper: float) -> Tensor:
    """Standard normal numbers between two bounds, by the inverse of the distribution function, in float64.

    The inverse is torch's, so devices may differ by its rounding error (about 1e-15), which rounding to a shorter
    dtype hides but for about one float32 number in 10^8.
    """
    # In the upper tail the distribution function is too close to 1 to tell numbers apart; its mirror image is not.
    mirrored = lower > 0
    start, stop = (normal_distribution(bound) for bound in ((-upper, -lower) if mirrored else (lower, upper)))
    unit = in_torch(open_unit_floats(words, torch.float64))
    # Rounding may give 0 or 1, whose inverses are infinite.
    probability = unit.mul_(stop - start).add_(start).clamp(_FIRST_PROBABILITY, _LAST_PROBABILITY)
    numbers = torch.special.ndtri(probability)
    return (numbers.neg_() if mirrored else numbers).clamp(lower, upper)


def normal_distribution(x: float) -> float:
    """The probability that a standard normal number is at most x, accurate in the lower tail."""
    return math.erfc(-x / math.sqrt(2)) / 2
