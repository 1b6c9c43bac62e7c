"""Arguments of a jitted function whose storage is reused for results: which may be, and which may be in this call."""

from collections.abc import Sequence

import attrs
import optree
import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.transforms._jit_key import Call, Key


def donated_inputs(
    call: Call, key: Key, tensors: Sequence[Tensor], names: Sequence[str], positions: Sequence[int]
) -> list[int]:
    """The graph's inputs that are in donated arguments.

    Args:
        call: the call.
        key: its key.
        tensors: the graph's inputs.
        names: what to call them.
        positions: of the donated arguments.

    Raises:
        ArgumentError: one of them cannot be written to.
    """
    if key.aliases is not None:
        raise ArgumentError("jit: the same tensor is passed twice, so its storage cannot be donated.")
    donated = []
    for position in positions:
        if not -len(call.args) <= position < len(call.args):
            raise ArgumentError(
                f"jit: donate_argnums names the positional argument {position}, but the function was called with "
                f"{len(call.args)}."
            )
        mine = {id(leaf) for leaf in optree.tree_leaves(call.args[position]) if isinstance(leaf, Tensor)}
        donated += [number for number, tensor in enumerate(tensors) if id(tensor) in mine]
    for number in donated:
        reason = _reason_against(tensors[number])
        if reason is not None:
            raise ArgumentError(f"jit: {names[number]} is donated but {reason}")
    return donated


def _reason_against(tensor: Tensor) -> str | None:
    if tensor.requires_grad:
        return "requires grad; its old value is needed for the gradient."
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "was made in inference mode, where alone it can be written to: donate x.clone()."
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "several of its elements are one place in memory: donate x.contiguous()."
    if tensor.is_conj() or tensor.is_neg():
        return "is the conjugate or the negative of what its memory holds: donate x.resolve_conj().resolve_neg()."
    return None


@attrs.frozen(eq=False)
class Apart:
    """A check that donated inputs share no memory with others: those would be overwritten before they are read.

    Attributes:
        names: what to call the inputs.
        donated: which of them are.
        extents: how many bytes each of them spans.
    """

    names: Sequence[str]
    donated: frozenset[int]
    extents: list[int]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], names: Sequence[str], donated: Sequence[int]) -> "Apart":
        """The check for calls with inputs like these."""
        return cls(names, frozenset(donated), [_extent(tensor) for tensor in tensors])

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Check the inputs of a call.

        Raises:
            ArgumentError: they share memory.
        """
        starts = [tensor.data_ptr() for tensor in tensors]
        last, end = -1, 0
        for number in sorted(range(len(starts)), key=starts.__getitem__):
            start, extent = starts[number], self.extents[number]
            if start < end and extent and not self.donated.isdisjoint((number, last)):
                one, other = (number, last) if number in self.donated else (last, number)
                raise ArgumentError(
                    f"jit: {self.names[one]} is donated but shares memory with {self.names[other]}: donate x.clone()."
                )
            if start + extent > end:
                last, end = number, start + extent


def _extent(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * (1 + sum((size - 1) * stride for size, stride in steps))
