"""All keys that one key stands for under `vmap`, handled together below it."""

import sys
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch._C._functorch import (
    _add_batch_dim,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack


def beneath(key: Tensor) -> tuple[Tensor, list[int]]:
    """The tensor below all transformations, batch dimensions first, and the levels of those, outermost first."""
    levels = []
    while is_functorch_wrapped_tensor(key):
        level, dimension = maybe_get_level(key), maybe_get_bdim(key)
        key = get_unwrapped(key)
        if dimension >= 0:
            levels.append(level)
        if dimension > 0:
            key = key.movedim(dimension, 0)
    return key, levels[::-1]


def at_once_on_cpu(key: Tensor, compute: Callable[[np.ndarray], Tensor], sizes: Sequence[int]) -> Tensor | None:
    """What a computation gives for a key, or None for what is not a plain tensor on a little-endian CPU.

    It is not for what is traced.

    Args:
        key: a key, already checked.
        compute: takes keys [keys, 2], all of a batch, and gives a tensor with the results of each in a row.
        sizes: the shape of one result.
    """
    keys, levels = beneath(key)
    if type(keys) is not Tensor or not keys.is_cpu or sys.byteorder != "little":
        return None
    if peek_interpreter_stack() is None:
        return compute(keys.numpy().reshape(1, 2)).view(sizes)
    with temporarily_clear_interpreter_stack():
        result = compute(keys.numpy().reshape(-1, 2)).reshape((*keys.shape[:-1], *sizes))
    for level in levels:
        result = _add_batch_dim(result, 0, level)
    return result
