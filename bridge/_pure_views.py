"""Tensors that lie on the memory of others: what is written into a view must show in the whole."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from purenn.errors import MutationError

_compiled: Any = torch._C


def memory_of(tensor: Tensor) -> int:
    """A number that tensors on the same memory have in common, whatever transformations have put around them."""
    tensor = _innermost(tensor)
    # A sparse tensor has no memory of its own, only those of its indices and values.
    return tensor.untyped_storage()._cdata if _compiled._has_storage(tensor) else id(tensor)


def begins_within(part: Tensor, whole: Tensor) -> bool:
    """Whether the first element of a tensor is one of another on the same memory, which has no gaps."""
    return 0 <= part.storage_offset() - whole.storage_offset() < whole.numel()


def is_seen_by_others(tensor: Tensor) -> bool:
    """Whether there are further tensors on the memory of a tensor, besides what it is a view of."""
    tensor = _innermost(tensor)
    if not _compiled._has_storage(tensor):
        return False
    storage = tensor.untyped_storage()
    # One for the tensor, and one for `storage`.
    return _compiled._storage_Use_Count(storage._cdata) > 2 + (tensor._base is not None)


def with_part(whole: Tensor, part: Tensor, new: Tensor) -> Tensor:
    """A tensor with new values in the place of one of its views.

    Raises:
        MutationError: the whole is not contiguous, so that it is not known which elements these are.
    """
    if not whole.is_contiguous():
        raise MutationError(
            f"a view of a tensor of shape {tuple(whole.shape)}, which is not contiguous, is written into where nothing "
            f"can be written in place. Make it contiguous, or compute the new tensor with torch.where or torch.cat."
        )
    start = part.storage_offset() - whole.storage_offset()
    places = torch.arange(whole.numel(), device=whole.device).as_strided(part.shape, part.stride(), start)
    return whole.flatten().index_put((places.flatten(),), new.to(whole.dtype).flatten()).reshape(whole.shape)


def _innermost(tensor: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor
