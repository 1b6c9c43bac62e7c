"""Which tensors have values that code may look at."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor

from purenn._modes import is_traced


def is_unknown(tensor: Tensor) -> bool:
    """Whether a tensor stands for many values, as under `vmap`, or for none, as while tracing."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return _has_no_value(tensor)


def common_value(tensor: Tensor) -> Any:
    """The value of a tensor with one element, if it is the same in all that the tensor stands for; otherwise None."""
    if tensor.numel() != 1:
        return None
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    if _has_no_value(tensor) or not tensor.numel():
        return None
    values = tensor.detach().flatten()
    return values[0].item() if bool((values == values[0]).all()) else None


def _has_no_value(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or tensor.is_meta or (is_traced() and not torch.compiler.is_compiling())
