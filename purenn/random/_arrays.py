"""What torch and numpy name differently, so that the arithmetic of draws is written once for both."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

# All arrays of one computation are of one kind.
Array = TypeVar("Array", Tensor, "np.ndarray[Any, Any]")

_NUMPY_DTYPES = {torch.int32: np.int32, torch.int64: np.int64, torch.float32: np.float32, torch.float64: np.float64}


def cast(x: Array, dtype: torch.dtype) -> Array:
    """The numbers in another dtype."""
    return x.to(dtype) if isinstance(x, Tensor) else x.astype(_NUMPY_DTYPES[dtype])


def read_as(x: Array, dtype: torch.dtype) -> Array:
    """The same bits, read as another dtype of that size."""
    return x.view(dtype) if isinstance(x, Tensor) else x.view(_NUMPY_DTYPES[dtype])


def at_most(x: Array, limit: float) -> Array:
    """The numbers, or the limit where they are larger."""
    return x.clamp(max=limit) if isinstance(x, Tensor) else np.minimum(x, limit)


def where(condition: Any, x: Array, other: Array) -> Array:
    """The first numbers where the condition holds, the other ones elsewhere."""
    choose: Any = torch.where if isinstance(x, Tensor) else np.where
    return choose(condition, x, other)


def halves(words: Array) -> tuple[Array, Array]:
    """The even words (0 and 2) and the odd ones (1 and 3) of all four, or the first and the last half of numbers."""
    middle = len(words) // 2
    return words[:middle], words[middle:]


def by_keys(parts: Sequence[Array]) -> Array:
    """Numbers of blocks in parts [k, keys, blocks], in one array [keys, all k, blocks]."""
    turned: list[Any] = [part.swapaxes(0, 1) for part in parts]
    keys, _, blocks = turned[0].shape
    if len(turned) == 1 and keys == 1:
        return turned[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(turned, 1)
    # By itself numpy would keep the order in which the parts lie.
    count = sum(len(part) for part in parts)
    return np.concatenate(turned, 1, out=np.empty((keys, count, blocks), parts[0].dtype))


def in_torch(x: Tensor | np.ndarray) -> Tensor:
    """The numbers as a tensor."""
    return x if isinstance(x, Tensor) else torch.from_numpy(x)
