"""How operations run at the moment: at once on their own data, batched, or written down by a tracer."""

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_traced() -> bool:
    """Whether a compiler or another dispatch mode, fake tensors for example, sees operations before they run."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def is_plain(*tensors: Tensor) -> bool:
    """Whether operations run at once on their own data: nothing traces, no vmap or grad level is around.

    Args:
        *tensors: what is operated on; a tensor of a subclass is never plain.
    """
    if is_traced() or peek_interpreter_stack() is not None:
        return False
    return all(type(tensor) is Tensor for tensor in tensors)
