"""The rule of maxima over windows: those of all examples as one large batch, for which there is a faster kernel."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from purenn.ops._max_pool import is_large, max_pool
from purenn.transforms.per_sample._below import BelowVmap
from purenn.transforms.per_sample._tape import PHYSICAL_RULES, Tape


def _pooling(function: Callable[..., Any], dimensions: int) -> None:
    def pool(
        tape: Tape,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        x: Tensor | None = tape.physical(input)
        if x is None or x.dim() < 2 + dimensions or return_indices:
            return NotImplemented
        with BelowVmap():
            batch = x.flatten(0, -2 - dimensions)
            if not is_large(batch, dimensions, dilation):
                return NotImplemented
            y, _ = max_pool(function, batch, kernel_size, stride, padding, dilation, ceil_mode)
            y = y.view(*x.shape[: -1 - dimensions], *y.shape[1:])
        return tape.batched(y)

    PHYSICAL_RULES[function] = pool


_pooling(F.max_pool2d, 2)
_pooling(F.max_pool3d, 3)
