"""What a loop hands on from step to step: a tree of tensors whose structure, shapes and dtypes stay the same."""

from typing import Any

import optree
from torch import Tensor

from purenn.errors import StructureError
from purenn.tree._map import first_difference
from purenn.tree._walk import fits, flatten, quoted, short


def require_tensors(name: str, carry: Any) -> None:
    """Raise a StructureError if a leaf is no tensor."""
    leaves, structure = flatten(carry)
    for path, leaf in zip(structure.paths, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise StructureError(
                f"{name}: the carry must be a tree of tensors, but {quoted(path)} is {short(leaf)}: what changes from "
                f"step to step cannot be a part of the structure. Use torch.tensor({leaf!r})."
            )


def require_alike(name: str, one: Any, other: Any, first: str, second: str) -> None:
    """Raise a StructureError, naming the first differing path, if two trees of tensors are of different kinds."""
    old, structure = flatten(one)
    new, spec = optree.tree_flatten(other)
    if not fits(spec, structure.spec):
        where, reason = first_difference(one, other, ())
        raise StructureError(f"{name}: {second} must have the structure of {first}; they differ at {where}: {reason}.")
    for path, a, b in zip(structure.paths, old, new, strict=True):
        if not is_alike(a, b):
            raise StructureError(
                f"{name}: {second} must look like {first}, but {quoted(path)} is {short(a)} there and {short(b)} here."
            )


def is_alike(one: Any, other: Any) -> bool:
    """Whether two leaves are tensors of the same shape and dtype, or equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.shape, one.dtype) == (other.shape, other.dtype)
    return type(one) is type(other) and one == other
