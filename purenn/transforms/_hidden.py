"""Traced tensors in what a function returns besides trees of tensors, where they would be left without a value."""

import gc
from collections.abc import Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from purenn.errors import TraceError
from purenn.tree._checks import a_or_an

# A tensor in an object's dictionary, or in a cell of a function's closure, is nearer than this.
_DEPTH = 4


def refuse_hidden(leaves: Sequence[Any]) -> None:
    """Check the leaves of a traced function's result that are no tensors.

    Raises:
        TraceError: one of them holds a traced tensor.
    """
    for leaf in leaves:
        if not isinstance(leaf, Tensor) and _holds_traced(leaf):
            raise TraceError(
                f"jit: the function returns {a_or_an(leaf)} that holds a traced tensor, which has no value. Return "
                f"tensors in tuples, lists, dicts and containers (`@pn.container` makes a class one), and build the "
                f"rest from them outside."
            )


def _holds_traced(item: Any) -> bool:
    level, seen = [item], {id(item)}
    for _ in range(_DEPTH):
        below = [inner for outer in level for inner in _inside(outer) if id(inner) not in seen]
        if any(isinstance(inner, FakeTensor) for inner in below):
            return True
        seen |= set(map(id, below))
        level = below
    return False


def _inside(item: Any) -> Sequence[Any]:
    if isinstance(item, (Tensor, type, ModuleType, CodeType)):
        return ()
    if isinstance(item, FunctionType):  # not its module's variables
        return (item.__closure__, item.__defaults__, item.__kwdefaults__)
    return gc.get_referents(item)
