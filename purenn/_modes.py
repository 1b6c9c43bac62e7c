"""How operations run at the moment: at once on their own data, batched, or written down by a tracer."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_traced() -> bool:
    """Whether a compiler or another dispatch mode, fake tensors for example, sees operations before they run."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


class _Nested(threading.local):
    depth = 0


_nested = _Nested()


@contextlib.contextmanager
def differentiated_again() -> Iterator[None]:
    """Within this context gradients are taken whose derivatives are asked for, of what is computed here."""
    _nested.depth += 1
    try:
        yield
    finally:
        _nested.depth -= 1


@contextlib.contextmanager
def nothing_differentiated_again() -> Iterator[None]:
    """Within this context what an outer `differentiated_again` says does not count."""
    before, _nested.depth = _nested.depth, 0
    try:
        yield
    finally:
        _nested.depth = before


def is_plain(*tensors: Tensor) -> bool:
    """Whether operations run at once on their own data and are differentiated once at most.

    That is, nothing traces, no vmap or grad level is around, and no gradient within a gradient.

    Args:
        *tensors: what is operated on; a tensor of a subclass is never plain.
    """
    if is_traced() or _nested.depth or peek_interpreter_stack() is not None:
        return False
    return all(type(tensor) is Tensor for tensor in tensors)
