"""What stands for a parameter while a loss is recorded: a tensor without data that shows where it is used.

torch asks a subclass of `Tensor` what to do whenever it meets one as an argument. A handle answers by the rule of the
operation, if there is one, and otherwise by a copy of the parameter for every example. Code that reaches for the data
without asking (a transformation inside of the loss, for example) gets `EscapedError`, never a wrong number.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from purenn.errors import PurennError
from purenn.transforms.per_sample._below import BelowVmap


class EscapedError(PurennError, RuntimeError):
    """An operation has reached a parameter in a way that cannot be recorded; the caller differentiates otherwise."""


class Node:
    """A parameter, or a tensor that is computed from parameters alone.

    Attributes:
        value: what it stands for, without a graph.
        source: its value with the graph that leads to the parameters, of which other nodes are computed. No loss may
            lead there except by way of nodes; one that does has not been recorded.
        leaf: the position of the parameter that it is; None if it is computed.
        base: the node of the parameter of which it is a view without repeated elements; None otherwise.
        replay: makes the same view of another tensor like the base.
        parts: its per-example gradient, in the parts that its uses contribute.
    """

    def __init__(
        self,
        tape: Any,
        value: Tensor,
        leaf: int | None = None,
        base: "Node | None" = None,
        replay: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.tape: Any = tape
        self.value = value.detach()
        self.leaf, self.base, self.replay = leaf, base, replay
        self._source = None if leaf is not None else value
        self._live: Tensor | None = None
        self.parts: list[Any] = []
        self._copies: Tensor | None = None

    @property
    def source(self) -> Tensor:
        """The value with the graph; of a parameter made when it is first asked for."""
        if self._source is None:
            self._source = _leaf(self.value)
        return self._source

    @property
    def live(self) -> Tensor:
        """The value as a leaf of a graph that the tape knows; made when it is first asked for."""
        if self._live is None:
            self._live = _leaf(self.value)
            self.tape.leaves.append(self._live)
        return self._live

    def beside(self, x: Tensor) -> Tensor:
        """The value for an operation with `x`: live only where the result would have no graph otherwise."""
        return self.value if x.requires_grad else self.live

    @property
    def is_transposed(self) -> bool:
        """Whether it is the transpose of a matrix that is a parameter."""
        if self.base is None or self.value.dim() != 2:
            return False
        whole = self.base.value
        return whole.dim() == 2 and whole.shape != (1, 1) and _layout(self.value) == _layout(whole.t())

    def forget(self) -> None:
        """Forget what only a recording needs."""
        self.tape, self.parts, self._copies = None, [], None

    def copies(self) -> Tensor:
        """One for every example, without copying anything, ``[examples, *shape]`` inside of the recording's vmap."""
        if self.base is not None and self.replay is not None:
            return self.replay(self.base.copies())
        if not torch.is_grad_enabled():
            return self.tape.batched(self.value.expand(self.tape.examples, *self.value.shape))
        if self._copies is None:
            self._copies = self.live.expand(self.tape.examples, *self.value.shape)
            self.tape.watch_copies(self, self._copies)
        return self.tape.batched(self._copies)


def _leaf(value: Tensor) -> Tensor:
    with BelowVmap():  # vmap would refuse it
        return value.detach().requires_grad_()


def _layout(x: Tensor) -> tuple:
    return tuple(x.shape), x.stride(), x.storage_offset()


class Handle(Tensor):
    """A node as the loss sees it."""

    node: Node

    @staticmethod
    def __new__(cls, node: Node) -> "Handle":
        """The handle of a node, with its shape, strides, dtype and device."""
        like = node.value
        handle = Tensor._make_wrapper_subclass(
            cls,
            like.shape,
            strides=like.stride(),
            storage_offset=like.storage_offset(),
            dtype=like.dtype,
            device=like.device,
        )
        handle.node = node
        return handle

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Have the operation recorded."""
        handle = next(handles_in((args, kwargs or {})))
        return handle.node.tape.operation(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Refuse: nothing may compute with a handle itself."""
        raise EscapedError(f"per_sample.record: {func} has reached a parameter inside of another transformation.")

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"parameter {list(self.node.value.shape)} while a loss is recorded"


def operands(items: Any) -> Iterator[Tensor]:
    """The tensors among arguments, in lists and dicts of them too."""
    for item in items.values() if isinstance(items, dict) else items:
        if isinstance(item, Tensor):
            yield item
        elif type(item) in (list, tuple, dict):
            yield from operands(item)


def handles_in(items: Any) -> Iterator[Handle]:
    """The handles among them."""
    return (item for item in operands(items) if isinstance(item, Handle))


def replaced(items: Any, replacement: Callable[[Tensor], Any]) -> Any:
    """Arguments with every tensor exchanged, in lists and dicts of them too."""
    if isinstance(items, Tensor):
        return replacement(items)
    if type(items) in (list, tuple):
        return type(items)([replaced(item, replacement) for item in items])
    if type(items) is dict:
        return {name: replaced(item, replacement) for name, item in items.items()}
    if isinstance(items, tuple) and hasattr(items, "_fields"):
        return type(items)(*[replaced(item, replacement) for item in items])
    return items
