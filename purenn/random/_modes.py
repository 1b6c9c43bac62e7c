"""How operations run at the moment: at once on their own data, batched, or written down by a tracer."""

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_traced() -> bool:
    """Whether a compiler or another dispatch mode, fake tensors for example, sees operations before they run."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def is_plain(tensor: Tensor) -> bool:
    """Whether operations on a tensor run at once on its own data: not traced, and no vmap or grad level around."""
    return not is_traced() and type(tensor) is Tensor and peek_interpreter_stack() is None
