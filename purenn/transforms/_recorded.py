"""What a graph that is differentiated afterwards has to know of how its function ran.

A graph of operations does not say at which level of transformation a tensor was that the function did not get as an
argument: such tensors are refused. And it does not say which operations ran under `torch.no_grad` (see `_no_grad`):
in a loop's body their results go through an operation that has no gradient, but tangents, since forward mode knows no
such switch.
"""

from collections.abc import Sequence
from typing import Any

import attrs
import optree
import torch
from torch import Tensor, library
from torch._C._functorch import get_interpreter_stack, is_functorch_wrapped_tensor, maybe_get_level
from torch.overrides import TorchFunctionMode

from purenn.errors import TraceError
from purenn.transforms._operation import LIBRARY, Operation, Tensors


class EscapedError(TraceError):
    """A tensor was used at a level of transformation that is not there."""


class Recorded(TorchFunctionMode):
    """Within this context a function is traced to a graph that is differentiated afterwards."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        everything: Any = (args, kwargs)
        given = optree.tree_leaves(everything)
        depth = len(get_interpreter_stack() or ())
        if any(_level(item) > depth for item in given):
            raise EscapedError("the function uses a tensor of a transformation that has ended.")
        return func(*args, **(kwargs or {}))


def _level(item: Any) -> int:
    return maybe_get_level(item) if isinstance(item, Tensor) and is_functorch_wrapped_tensor(item) else 0


def constant(tensor: Tensor) -> Tensor:
    """A tensor without a gradient, in a form that transformations can see through."""
    return Operation.apply(_Constant(), tensor)[0]


@attrs.frozen(eq=False)
class _Constant:
    kept: tuple[int, ...] = ()

    def call(self, tensors: Tensors) -> Tensors:
        return [torch.ops.purenn.constant(tensors[0])]

    def pull(self, *_: Any) -> list[None]:
        return [None]

    def push(self, tensors: Tensors, tangents: Sequence[Tensor | None]) -> list[Any]:
        return list(tangents)

    def batched(self, size: int, in_dims: tuple, tensors: Tensors) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return Operation.apply(self, *tensors), in_dims


LIBRARY.define("constant(Tensor x) -> Tensor")
LIBRARY.impl("constant", lambda x: x.clone(), "CompositeExplicitAutograd")
library.register_fake("purenn::constant", torch.empty_like, lib=LIBRARY)
library.register_autograd("purenn::constant", lambda ctx, gradient: None, lib=LIBRARY)
