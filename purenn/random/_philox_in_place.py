"""Philox on many counters, by in-place arithmetic on fresh buffers: several times faster, with the words of `philox`.

On the CPU it runs in numpy, whose calls cost a quarter of torch's: that counts where a hundred of them work on few
numbers. It is for plain tensors on little-endian machines only: in-place writes of batched values fail under `vmap`.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from purenn.random._arrays import Array
from purenn.random._philox import KEY_STEPS, MULTIPLIERS, ROUNDS, WORD_MASK, philox

# Up to here python integers are faster.
_FEW_BLOCKS = 4

# On an accelerator the number of launches counts, not the cache.
_BLOCKS_PER_PASS = 2**21

# An array operand costs less than a python number. The tensors stay on the CPU whatever the default device is.
_ARRAYS = tuple(np.array(value, np.uint64) for value in (*MULTIPLIERS, WORD_MASK))
_TENSORS = tuple(torch.tensor(value, device="cpu") for value in (*MULTIPLIERS, WORD_MASK))
_STEPS = np.arange(ROUNDS, dtype=np.uint64)[:, None, None] * np.array(KEY_STEPS, np.uint64)[:, None]

# Where the words of a counter lie at first: each round a row takes the part before its own, and after ten rounds the
# rows hold words 0, 2, 1, 3 in this order.
_FIRST_ROWS = (1, 3, 0, 2)


def philox_rows(keys: np.ndarray, blocks: int, first: int, second: int, domain: int) -> np.ndarray:
    """The words of the blocks with the counters (first, second, 0, domain), (first + 1, second, 0, domain), ...

    Args:
        keys: int64 [keys, 2].
        blocks: how many of them for each key.
        first: lowest word of the first counter.
        second: the next word of all of them.
        domain: the last word.

    Returns:
        int64 [4, keys, blocks]: the words 0, 2, 1 and 3 of each block.
    """
    if len(keys) * blocks <= _FEW_BLOCKS:
        few = [philox((first + block, second, 0, domain), key) for key in keys.tolist() for block in range(blocks)]
        return np.array(few, np.int64).reshape(-1, 4).T[[0, 2, 1, 3]].reshape(4, len(keys), blocks)
    words = np.zeros((4, len(keys), blocks), np.uint64)
    row0, row1, _, row3 = _FIRST_ROWS
    words[row0] = np.arange(first, first + blocks, dtype=np.uint64)
    words[row1] = second
    words[row3] = domain
    _run_rounds(words, words.reshape(4, -1).view(np.uint32), _round_keys(keys), _ARRAYS)
    return words.view(np.int64)


def philox_passes(key: Tensor, domain: int, blocks: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks with the counters (0 ... blocks-1, 0, 0, domain), many at a time.

    Yields:
        A slice of the blocks, and their words 0, 2, 1 and 3, int64 [4, blocks].
    """
    steps = torch.arange(ROUNDS, device=key.device)
    round_keys = [
        ((steps * increment + word) & WORD_MASK).unbind()
        for word, increment in zip(key.unbind(), KEY_STEPS, strict=True)
    ]
    for start in range(0, blocks, _BLOCKS_PER_PASS):
        numbers = torch.arange(start, min(start + _BLOCKS_PER_PASS, blocks), device=key.device)
        words = torch.zeros(4, len(numbers), dtype=torch.int64, device=key.device)
        words[_FIRST_ROWS[0]], words[_FIRST_ROWS[3]] = numbers, domain
        _run_rounds(words, words.view(torch.int32), zip(*round_keys, strict=True), _TENSORS)
        yield slice(start, start + len(numbers)), words


def _round_keys(keys: np.ndarray) -> Iterable[Sequence[np.ndarray]]:
    """The two words of each round, which broadcast against [keys, blocks]; what passes 32 bits is masked away later."""
    round_keys = keys.T.astype(np.uint64, order="C") + _STEPS
    if len(keys) == 1:
        # Arrays without dimensions cost numpy half as much.
        return [(words[0, 0, ...], words[1, 0, ...]) for words in round_keys]
    return round_keys[..., None]


def _run_rounds(words: Array, halves: Array, round_keys: Iterable, constants: tuple[Array, ...]) -> None:
    """Ten rounds in place; `halves` are the words seen as 32-bit halves, ``[4, ...]``."""
    first, second, mask = constants
    low_halves, high_halves = halves[:, :-1], halves[:, 1:]
    row0, row1, row2, row3 = [(words[row], low_halves[row], high_halves[row]) for row in _FIRST_ROWS]
    even, odd = words[:2], words[2:]
    for key0, key1 in round_keys:
        (word0, _, high0), (word1, low1, _), (word2, _, high2), (word3, low3, _) = row0, row1, row2, row3
        word0 *= first
        word2 *= second
        # A high half follows its low half: shifted by one, exclusive or meets the high half of the product without a
        # shift of its own. What lands in the other halves is masked away.
        low1 ^= high2
        word1 ^= key0
        low3 ^= high0
        word3 ^= key1
        odd &= mask
        row0, row1, row2, row3 = row1, row2, row3, row0
        even, odd = odd, even
    odd &= mask
