"""Keys: making, splitting and folding them.

A key is an ordinary int64 tensor [2] that holds two 32-bit words, so `vmap`, trees and files take it as it is.
Children are words 0 and 1, or 2 and 3, of blocks in a domain that no draw uses. A key has 64 bits: among n keys drawn
at random two are equal with probability about n^2 / 2^65.
"""

import numpy as np
import torch
from torch import Tensor

from purenn._modes import is_plain, is_traced
from purenn.errors import ArgumentError
from purenn.random._arguments import check_key, is_count, two_words
from purenn.random._generate import Domain
from purenn.random._levels import at_once_on_cpu
from purenn.random._philox import WORD_MASK, Word, block_numbers, philox
from purenn.random._philox_in_place import philox_rows
from purenn.random._strict import record_fold, record_use

_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_INTEGER_DTYPES = (*_UNSIGNED, torch.int8, torch.int16, torch.int32, torch.int64)


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A random key made from a seed.

    Args:
        seed: An integer in [-2^63, 2^64), negative ones read as two's complement like in ``torch.manual_seed``.
            Different seeds give different keys.
        device: Where the key lives, and with it everything drawn from it; torch's default device when None.

    Returns:
        An int64 tensor [2]: the low and the high word of the seed.

    Raises:
        ArgumentError: When the seed is not an integer of 64 bits.
    """
    if isinstance(seed, Tensor):
        raise ArgumentError(
            "seed must be a python int, not a tensor; to make keys from tensors write fold_in(key(0), data)"
        )
    return torch.tensor(two_words("seed", seed), dtype=torch.int64, device=device)


def split(key: Tensor, n: int = 2) -> Tensor:
    """New keys from one key, independent of each other and of everything drawn from other keys.

    The key itself is used up: draw from its children instead. A child does not depend on `n`:
    ``split(key, 3)[:2]`` equals ``split(key, 2)``.

    Args:
        key: A key, int64 [2].
        n: How many.

    Returns:
        An int64 tensor [n, 2], one key a row: ``first, second = split(key)``.

    Raises:
        ArgumentError: When `key` is not a key or `n` is negative.

    Example:
        >>> first, second = split(key(0))
        >>> [tuple(child.shape) for child in (first, second)]
        [(2,), (2,)]
    """
    check_key(key)
    if not is_count(n):
        raise ArgumentError(f"n must be the number of keys, an int of at least 0, not {n!r}")
    record_use(key)
    blocks = (n + 1) // 2
    if not is_traced():

        def compute(keys: np.ndarray) -> Tensor:
            words = philox_rows(keys, blocks, 0, 0, Domain.SPLIT)[[0, 2, 1, 3]]
            children = words.transpose(1, 2, 0).reshape(len(keys), 2 * blocks, 2)[:, :n]
            return torch.from_numpy(np.ascontiguousarray(children))

        children = at_once_on_cpu(key, compute, (n, 2))
        if children is not None:
            return children
    words = philox((block_numbers(blocks, key.device), 0, 0, Domain.SPLIT.value), key.unbind())
    return torch.stack(words, -1).reshape(-1, 2)[:n]


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A new key from a key and a number, such as a step, a layer or an example.

    The same key may be folded with any number of different data.

    Args:
        key: A key, int64 [2].
        data: An integer in [-2^63, 2^64), or an integer tensor with no dimensions; use `vmap` to fold in many.

    Returns:
        An int64 tensor [2].

    Raises:
        ArgumentError: When `key` is not a key or `data` is not one integer.
    """
    check_key(key)
    child = _fold(key, *_data_words(key, data))
    record_fold(key, data, child)
    return child


def _fold(key: Tensor, low: Word, high: Word) -> Tensor:
    if isinstance(low, int) and isinstance(high, int) and not is_traced():

        def compute(keys: np.ndarray) -> Tensor:
            return torch.from_numpy(philox_rows(keys, 1, low, high, Domain.FOLD)[::2, :, 0].T.copy())

        child = at_once_on_cpu(key, compute, (2,))
        if child is not None:
            return child
    first, second, _, _ = philox((low, high, 0, Domain.FOLD.value), key.unbind())
    return torch.stack((first, second))


def _data_words(key: Tensor, data: int | Tensor) -> tuple[Word, Word]:
    if not isinstance(data, Tensor):
        return two_words("data", data)
    if data.dtype not in _INTEGER_DTYPES:
        raise ArgumentError(f"data must be an integer tensor, not one of {data.dtype}; fold in a step or an index")
    if data.dim() != 0:
        raise ArgumentError(
            f"data must be one integer, a tensor without dimensions, not one of shape {list(data.shape)}; "
            "write purenn.vmap(fold_in, in_dims=(None, 0))(key, data) for a key each"
        )
    if data.device.type == "cpu" and is_plain(data) and is_plain(key):
        return two_words("data", int(data.item()))
    data = data.to(torch.int64)
    return data & WORD_MASK, (data >> 32) & WORD_MASK
