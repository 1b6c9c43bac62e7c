"""Where large tensors lie: in large pages, and each at another place of its page.

A step of an optimiser on the CPU does little but go through several tensors side by side. Two things hold it up:
looking up where pages of 4 KiB lie, and addresses that agree in their lowest 12 bits, which a processor takes for the
same place at first. Large new tensors always start at the same place of a page. So a state of this size is made as one
buffer, whatever the parameters are.
"""

import ctypes
import mmap
import sys
from typing import Any

import torch
from torch import Tensor

from purenn._modes import is_plain

#: Bytes from which on it matters: those of a large page.
LARGE = 2 << 20
_PAGE, _LINE = 4096, 64


def spread(tensor: Tensor) -> Tensor:
    """A copy of a tensor at a better place, if it is a large one in row-major order on the CPU, else the tensor."""
    if not (tensor.is_cpu and tensor.nbytes >= LARGE and is_plain(tensor) and tensor.is_contiguous()):
        return tensor
    return empty(tensor.numel(), tensor.dtype).view(tensor.shape).copy_(tensor.detach())


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """A vector on the CPU that has not been written to."""
    size = dtype.itemsize
    if count * size < LARGE:
        return torch.empty(count, dtype=dtype)
    whole = torch.empty(count + _PAGE // size, dtype=dtype)
    _use_large_pages(whole)
    # Tensors that are large enough to matter lie in different large pages.
    line = whole.data_ptr() // LARGE % (_PAGE // _LINE)
    start = line * _LINE // size
    return whole[start : start + count]


def _use_large_pages(tensor: Tensor) -> None:
    first = -(-tensor.data_ptr() // LARGE) * LARGE
    last = (tensor.data_ptr() + tensor.nbytes) // LARGE * LARGE
    if _ADVISE is not None and last > first:
        _ADVISE(first, last - first, mmap.MADV_HUGEPAGE)  # no more than advice: a refusal changes nothing


def _system_advise() -> Any:
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise


_ADVISE = _system_advise()
