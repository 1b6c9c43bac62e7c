"""Looking through what transformations wrap around a tensor."""

from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad


def physical(value: Tensor) -> Tensor:
    """The values of all examples."""
    while is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
    return value


def one_example(value: Tensor) -> Tensor:
    """The values of the first example, which no transformation follows."""
    while is_functorch_wrapped_tensor(value):
        inner = get_unwrapped(value)
        value = inner.select(maybe_get_bdim(value), 0) if is_batchedtensor(value) else inner
    return value.detach()


def transformed(value: Tensor) -> str:
    """What some transformation does to a tensor, "differentiated" or "batched"; empty if none does anything."""
    if value.requires_grad or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None):
        return "differentiated"
    if is_batchedtensor(value):
        return "batched"
    if peek_interpreter_stack() is None:
        return ""
    level = retrieve_current_functorch_interpreter()
    own = is_functorch_wrapped_tensor(value) and maybe_get_level(value) == level.level()
    with level.lower():
        return transformed(get_unwrapped(value) if own else value)
