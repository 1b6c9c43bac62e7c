"""Maxima of large batches on the CPU, by the kernel that is fast.

Where channels come first in memory, torch's kernel looks at one element after another. Where they come last, it looks
at a vector of channels at once, which saves far more time than bringing the input into that order takes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from purenn._modes import runs_at_once

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
# Below either of them the copies take longer than the slow kernel.
_FEWEST_CHANNELS = 16
_FEWEST_ELEMENTS = 2**15
# Channels that are a multiple of so many bytes apart fight for the same lines of the processor's cache.
_CACHE_PERIOD = 4096
# How many elements each thread brings into the other order at a time: they stay in the processor's cache.
_ELEMENTS_AT_A_TIME = 2**19


def is_large(x: Tensor, dimensions: int, dilation: int | Sequence[int]) -> bool:
    """Whether `max_pool` is the faster way for an input with so many spatial dimensions.

    With another dilation than 1 there can be windows without an element.
    """
    if not runs_at_once(x) or is_tracing():  # what is traced shall hold for other sizes
        return False
    return (
        x.is_cpu
        and dimensions in _CHANNELS_LAST
        and x.dim() == 2 + dimensions
        and x.size(1) >= _FEWEST_CHANNELS
        and x.numel() >= _FEWEST_ELEMENTS
        and x.is_floating_point()
        and x.is_contiguous()
        and dilation in (1, (1,) * dimensions)
    )


def max_pool(function: Callable[..., Any], x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Maxima and their places.

    Args:
        function: torch's pooling over two or three dimensions.
        x: a batch in row-major order.
        *options: of `function`, for which `is_large` holds.
    """
    layout = _CHANNELS_LAST[x.dim() - 2]
    examples = max(1, _ELEMENTS_AT_A_TIME * torch.get_num_threads() // x[0].numel())

    def places_in(part: Tensor) -> Tensor:
        _, places = function(_with_channels_last(part, layout), *options, return_indices=True)
        return places.contiguous()

    with torch.no_grad():
        places = torch.cat([places_in(part) for part in x.split(examples)])
    # Derivatives of all orders are those of taking elements out.
    return x.flatten(2).gather(2, places.flatten(2)).view_as(places), places


def _with_channels_last(x: Tensor, layout: torch.memory_format) -> Tensor:
    examples, channels, *space = x.shape
    plane = x[0, 0].numel()
    if plane * x.element_size() % _CACHE_PERIOD:
        return x.contiguous(memory_format=layout)
    transposed = x.new_empty(examples, plane, channels)
    for example, own in zip(x.flatten(2), transposed, strict=True):
        own.copy_(example.t())  # torch transposes a matrix block by block, but not a batch of them
    return transposed.mT.unflatten(2, space)
