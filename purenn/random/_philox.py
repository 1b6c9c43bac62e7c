"""Philox-4x32-10: a counter-based generator in plain torch integer arithmetic.

A block of four 32-bit words is a bijective scramble of a 128-bit counter under a 64-bit key: ten rounds, each of two
32x32 -> 64 bit products whose halves are exchanged and mixed with the key by exclusive or. There is no state, so any
block can be computed alone, in any order, on any device, and always comes out the same.

A word lives in an int64. The product of two words may pass 2^63 and wrap to a negative number. In torch's kernels that
does no harm: they work modulo 2^64, and a mask after the (arithmetic) shift leaves the true high half. But generated
C++ may not overflow, or its compiler may draw wrong conclusions, so traced code multiplies without.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from collections.abc import Sequence
from typing import TypeAlias, overload

import torch
from torch import Tensor, fx

from purenn._modes import is_traced

# One word of a counter or key: a python int, or a tensor that broadcasts against the others.
Word: TypeAlias = int | Tensor

WORD_MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # what each round adds to the two words of the key


@overload
def philox(counter: tuple[int, int, int, int], key: Sequence[int]) -> tuple[int, int, int, int]: ...


@overload
def philox(counter: tuple[Word, Word, Word, Word], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


def philox(counter: tuple[Word, Word, Word, Word], key: Sequence[Word]) -> tuple[Word, Word, Word, Word]:
    """The four words that belong to a counter under a key.

    Written once for python ints and for tensors, so the small, the batched and the traced cases share it.

    Args:
        counter: Four words, each 0 ... 2^32-1; tensors broadcast against each other.
        key: Two words; higher bits are ignored.

    Returns:
        Four words, each 0 ... 2^32-1.
    """
    c0, c1, c2, c3 = counter
    for step in range(ROUNDS):
        k0 = (key[0] + step * KEY_STEPS[0]) & WORD_MASK
        k1 = (key[1] + step * KEY_STEPS[1]) & WORD_MASK
        first_high, first_low = wide_product(c0, MULTIPLIERS[0])
        second_high, second_low = wide_product(c2, MULTIPLIERS[1])
        c0, c2 = (second_high ^ c1 ^ k0) & WORD_MASK, (first_high ^ c3 ^ k1) & WORD_MASK
        c1, c3 = second_low, first_low
    return c0, c1 & WORD_MASK, c2, c3 & WORD_MASK


def draws_in(graph: fx.GraphModule) -> bool:
    """Whether a traced graph generates random words."""
    # What `wide_product` multiplies by where it is traced.
    return any(MULTIPLIERS[0] in node.args for node in graph.graph.nodes)


def block_numbers(blocks: int, device: torch.device) -> Tensor:
    """The lowest words of the counters of many blocks: 0 ... blocks-1.

    The mask changes nothing but how inductor sees them: without it the products with the multipliers would be taken
    for memory indices, which it computes in 32 bits.
    """
    return torch.arange(blocks, device=device) & WORD_MASK


@overload
def wide_product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]: ...


@overload
def wide_product(word: Word, factor: int) -> tuple[Word, Word]: ...


def wide_product(word: Word, factor: int) -> tuple[Word, Word]:
    """The high and the low half of a word times a factor in [0, 2^32].

    Only the lower 32 bits of each count: a mask is left to the caller, who may need one anyway.
    """
    if isinstance(word, int) or not is_traced():
        product = word * factor
        return product >> 32, product
    # Less 2^31 the word has a product within 2^63 on both sides.
    product = (word - 2**31) * factor
    if factor % 2:
        product = product + 2**31
    return (product >> 32) + (factor >> 1), product & WORD_MASK
