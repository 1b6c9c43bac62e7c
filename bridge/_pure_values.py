"""Which tensors have values that code may look at."""

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
    return isinstance(tensor, FakeTensor) or tensor.is_meta or (is_traced() and not torch.compiler.is_compiling())
