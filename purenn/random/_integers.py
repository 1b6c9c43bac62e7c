"""Integers from a range, by multiplying its size with a random binary fraction.

Written so that no product or sum passes 2^63: see `wide_product`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.random._arguments import Shape
from purenn.random._arrays import halves, in_torch
from purenn.random._draws import draw
from purenn.random._philox import WORD_MASK, wide_product


def randint(key: Tensor, shape: Shape, *, low: int, high: int) -> Tensor:
    """Integers from low to high - 1.

    Each number is the high part of the product of ``high - low`` with 64 random bits, or 128 where the range is over
    2^32. So no probability is off by more than a factor of 1 +- 2^-32, and where the range is a power of two all are
    equal.

    Args:
        key: A key, int64 [2].
        shape: The result's.
        low: The smallest value.
        high: One more than the largest value.

    Returns:
        An int64 tensor of that shape on the key's device.

    Raises:
        ArgumentError: When `key` is not a key, `shape` not a shape, or unless ``-2^63 <= low < high <= 2^63``.
    """
    if not (isinstance(low, int) and isinstance(high, int) and -(2**63) <= low < high <= 2**63):
        raise ArgumentError(
            f"low and high must be ints with -2^63 <= low < high <= 2^63, not low={low!r} and high={high!r}"
        )
    span = high - low
    if span <= 2**32:
        return draw(key, shape, lambda words: (_below(in_torch(words), span) + low,), per_block=2, dtype=torch.int64)
    return draw(key, shape, lambda words: (_between(in_torch(words), low, span),), per_block=1, dtype=torch.int64)


def _below(words: Tensor, span: int) -> Tensor:
    """The integer part of ``span * r``, where r in [0, 1) has the 64 binary digits of an even and an odd word."""
    even, odd = halves(words)
    if span <= 2**31:
        # Nothing can overflow.
        return (even * span + (odd * span >> 32)) >> 32
    return _digits_times([odd, even], span)[-1]


def _between(words: Tensor, low: int, span: int) -> Tensor:
    """`low` plus the integer part of ``span * r``, where r has the 128 digits of a block; 2^32 < span <= 2^64."""
    word0, word2, word1, word3 = words.split(1)
    digits = (word3, word2, word1, word0)
    *_, low_word, high_word = digits if span == 2**64 else _below_large(digits, span)
    # Neither half of the range overflows: from 0 up if low is there, else from -2^63 up.
    shift = 0 if low >= 0 else 2**31
    return (high_word - shift) * 2**32 + low_word + (low + shift * 2**32)


def _below_large(digits: Sequence[Tensor], span: int) -> tuple[Tensor, Tensor]:
    """The two words of the integer part of ``span * r``: schoolbook multiplication and addition, word by word."""
    lower = _digits_times(digits, span & WORD_MASK)
    upper = _digits_times(digits, span >> 32)
    total = torch.zeros_like(digits[0])
    for left, right in zip(lower[1:], upper[:-1], strict=True):
        total = left + right + (total >> 32)
    return total & WORD_MASK, upper[-1] + (total >> 32)


def _digits_times(digits: Sequence[Tensor], factor: int) -> list[Tensor]:
    """A number written in words, lowest first, times a factor in [0, 2^32]: one word more."""
    products = []
    carry = torch.zeros_like(digits[0])
    for digit in digits:
        high, low = wide_product(digit, factor)
        total = (low & WORD_MASK) + carry
        products.append(total & WORD_MASK)
        carry = (high & WORD_MASK) + (total >> 32)
    return [*products, carry]
