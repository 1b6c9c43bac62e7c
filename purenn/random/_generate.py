"""From a key to a flat run of numbers: the one place that knows where counters start and how words are laid out.

The key's two words are the Philox key, and a counter is ``(block, 0, 0, domain)``: draws, splits and fold-ins count in
domains of their own, so a child key never comes from a block that a draw has used. A draw takes as many blocks as it
needs and lays its numbers out in planes (from word 0 of every block, then from word 2, ...), because planes are what
whole-tensor arithmetic writes fastest. Hence the first numbers of a long draw are not those of a short one.
"""

import sys
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.random._philox import FEW_BLOCKS, WORD_MASK, block_numbers, philox, philox_passes

# Takes the even words (0 and 2) and the odd words (1 and 3) of m blocks, two int64 tensors [2, m] that it may
# overwrite, and returns numbers [m] or [2, m], in one or more tensors. Block by block, so that the numbers do not
# depend on how blocks are grouped into passes.
Convert = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Domain(IntEnum):
    """The last word of a counter: what its block is for."""

    DRAW = 0
    SPLIT = 1
    FOLD = 2


def generate(key: Tensor, count: int, convert: Convert, *, per_block: int, dtype: torch.dtype) -> Tensor:
    """The numbers of one draw.

    Args:
        key: A key, already checked.
        count: How many numbers.
        convert: Makes numbers from words.
        per_block: How many numbers `convert` makes from a block.
        dtype: The result's.

    Returns:
        A tensor [count] on the key's device.

    Raises:
        ArgumentError: When the counter would run over.
    """
    if count == 0:
        return torch.empty(0, dtype=dtype, device=key.device)
    blocks = -(-count // per_block)
    if blocks > WORD_MASK:
        raise ArgumentError(
            f"shape asks for {count} numbers, but one key draws at most {per_block * WORD_MASK} at once; "
            "split the key and draw in parts"
        )
    if is_plain(key) and sys.byteorder == "little":
        return _in_passes(key, count, convert, blocks, per_block, dtype)
    return _at_once(key, count, convert, blocks, dtype)


def _at_once(key: Tensor, count: int, convert: Convert, blocks: int, dtype: torch.dtype) -> Tensor:
    """One expression over all blocks: what vmap can batch and a compiler can fuse."""
    word0, word1, word2, word3 = philox((block_numbers(blocks, key.device), 0, 0, Domain.DRAW.value), key.unbind())
    numbers = convert(torch.stack((word0, word2)), torch.stack((word1, word3)))
    planes = [plane for part in numbers for plane in part.reshape(-1, blocks)]
    return torch.cat([plane[: max(count - start * blocks, 0)] for start, plane in enumerate(planes)]).to(dtype)


def _in_passes(key: Tensor, count: int, convert: Convert, blocks: int, per_block: int, dtype: torch.dtype) -> Tensor:
    """The same numbers in cache-sized passes over fresh buffers."""
    few = key.device.type == "cpu" and blocks <= FEW_BLOCKS
    passes = [(0, blocks, *_few_words(key, blocks))] if few else philox_passes(key, Domain.DRAW.value, blocks)
    planes = torch.empty(per_block, blocks, dtype=dtype, device=key.device)
    for start, stop, even, odd in passes:
        top = 0
        for numbers in convert(even, odd):
            rows = numbers.view(-1, stop - start)
            planes[top : top + len(rows), start:stop] = rows
            top += len(rows)
    result = planes.view(-1)
    # A clone, so that the result owns its own numbers and nothing else.
    return result if count == per_block * blocks else result[:count].clone()


def _few_words(key: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    key_words = key.tolist()
    columns = [philox((block, 0, 0, Domain.DRAW.value), key_words) for block in range(blocks)]
    word0, word1, word2, word3 = zip(*columns, strict=True)
    even, odd = torch.tensor([[word0, word2], [word1, word3]], device=key.device).unbind()
    return even, odd
