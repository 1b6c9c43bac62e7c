"""From a key to a flat run of numbers: the one place that knows where counters start and how words are laid out.

The key's two words are the Philox key, and a counter is ``(block, 0, 0, domain)``: draws, splits and fold-ins count in
domains of their own, so a child key never comes from a block that a draw has used. A draw takes as many blocks as it
needs and lays its numbers out in planes (from word 0 of every block, then from word 2, ...), because planes are what
whole-tensor arithmetic writes fastest. Hence the first numbers of a long draw are not those of a short one.
"""

import math
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from purenn._modes import is_plain, is_traced
from purenn.errors import ArgumentError
from purenn.random._arrays import by_keys, in_torch
from purenn.random._levels import at_once_on_cpu
from purenn.random._philox import WORD_MASK, block_numbers, philox
from purenn.random._philox_in_place import philox_passes, philox_rows

# Takes the words 0, 2, 1 and 3 of some blocks, an int64 tensor or array [4, ...], and returns numbers [k, ...] in one
# or more tensors or arrays. Block by block, so that they do not depend on how blocks are grouped into passes.
Convert: TypeAlias = Callable[[Any], tuple[Any, ...]]

# Which keys, which of their blocks, and the words of those, [4, keys, blocks].
Pass: TypeAlias = tuple[slice, slice, Tensor | np.ndarray]

# What numpy computes with stays in the second-level cache.
_BLOCKS_PER_PASS = 2**14
# It uses one thread, and torch takes twice the time on one.
_THREADS_FOR_TORCH = 3


class Domain(IntEnum):
    """The last word of a counter: what its block is for."""

    DRAW = 0
    SPLIT = 1
    FOLD = 2


def generate(key: Tensor, sizes: tuple[int, ...], convert: Convert, *, per_block: int, dtype: torch.dtype) -> Tensor:
    """The numbers of one draw.

    Args:
        key: A key, already checked.
        sizes: The result's shape.
        convert: Makes numbers from words.
        per_block: How many numbers `convert` makes from a block.
        dtype: The result's.

    Returns:
        A tensor of that shape on the key's device.

    Raises:
        ArgumentError: When the counter would run over.
    """
    count = math.prod(sizes)
    if count == 0:
        return key.new_empty(sizes, dtype=dtype)
    blocks = -(-count // per_block)
    if blocks > WORD_MASK:
        raise ArgumentError(
            f"shape asks for {count} numbers, but one key draws at most {per_block * WORD_MASK} at once; "
            "split the key and draw in parts"
        )
    if not is_traced():
        long = blocks > _BLOCKS_PER_PASS and torch.get_num_threads() >= _THREADS_FOR_TORCH
        if (long or not key.is_cpu) and is_plain(key) and sys.byteorder == "little":
            return _in_passes(_passes(key, blocks), (1, per_block, blocks), count, convert, dtype).view(sizes)

        def compute(keys: np.ndarray) -> Tensor:
            return _in_passes(_passes_on_cpu(keys, blocks), (len(keys), per_block, blocks), count, convert, dtype)

        numbers = at_once_on_cpu(key, compute, sizes)
        if numbers is not None:
            return numbers
    return _at_once(key, count, convert, blocks, dtype).reshape(sizes)


def _at_once(key: Tensor, count: int, convert: Convert, blocks: int, dtype: torch.dtype) -> Tensor:
    """One expression over all blocks: what vmap can batch and a compiler can fuse."""
    word0, word1, word2, word3 = philox((block_numbers(blocks, key.device), 0, 0, Domain.DRAW.value), key.unbind())
    numbers = convert(torch.stack((word0, word2, word1, word3)))
    planes = [plane for part in numbers for plane in part.reshape(-1, blocks)]
    return torch.cat([plane[: max(count - start * blocks, 0)] for start, plane in enumerate(planes)]).to(dtype)


def _in_passes(
    passes: Iterator[Pass], planes: tuple[int, int, int], count: int, convert: Convert, dtype: torch.dtype
) -> Tensor:
    """The same numbers from words in passes; `planes` is the shape [keys, numbers a block, blocks]."""
    result = None
    for keys, blocks, words in passes:
        numbers = in_torch(by_keys(convert(words)))
        if numbers.dtype != dtype:
            numbers = numbers.to(dtype)
        if numbers.shape == planes:
            result = numbers
        else:
            result = torch.empty(planes, dtype=dtype, device=numbers.device) if result is None else result
            result[keys, :, blocks] = numbers
    assert result is not None
    result = result.reshape(planes[0], -1)
    # A clone, so that the result owns its own numbers and nothing else.
    return result if count == result.shape[1] else result[:, :count].clone()


def _passes(key: Tensor, blocks: int) -> Iterator[Pass]:
    for columns, words in philox_passes(key, Domain.DRAW.value, blocks):
        yield slice(None), columns, words[:, None]


def _passes_on_cpu(keys: np.ndarray, blocks: int) -> Iterator[Pass]:
    several = max(1, _BLOCKS_PER_PASS // blocks)
    for first in range(0, len(keys), several):
        rows = slice(first, first + several)
        for start in range(0, blocks, _BLOCKS_PER_PASS):
            columns = slice(start, min(start + _BLOCKS_PER_PASS, blocks))
            yield rows, columns, philox_rows(keys[rows], columns.stop - start, start, 0, Domain.DRAW)
