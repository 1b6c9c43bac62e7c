"""What the arguments of a graph that is not traced yet are like."""

from typing import NamedTuple

import torch
from torch import Tensor


class Like(NamedTuple):
    """What a tensor is like."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Like":
        """Like a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device)

    @property
    def is_differentiable(self) -> bool:
        """Whether the dtype has derivatives."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    def batched(self, size: int) -> "Like":
        """Like many of these."""
        return self._replace(shape=(size, *self.shape))

    def example(self, *, differentiated: bool) -> Tensor:
        """A tensor like this, with a graph of autograd if it can have one."""
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return made.requires_grad_().clone() if differentiated and self.is_differentiable else made

    @classmethod
    def row(cls, tensor: Tensor) -> "Like":
        """Like an entry of a tensor."""
        return cls(tuple(tensor.shape[1:]), tensor.dtype, tensor.device)
