"""Which axis of which argument is batched: the arguments of `vmap`, taken apart and checked."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purenn.errors import ArgumentError, BatchingError
from purenn.transforms._failures import NOT_DENSE
from purenn.tree._walk import Leaf, flatten, one_level, short


class Batch(NamedTuple):
    """The arguments of a batched call, taken apart.

    Attributes:
        leaves: of all arguments, in order, with the axis to batch over in front: torch has batching rules that are
            wrong or fail where it is elsewhere (of the gradient of `grid_sample`).
        dims: for every leaf 0, or None if it is the same for all examples.
        size: how many examples there are.
        specs: of every argument the structure and the number of leaves.
        names: of the last arguments, which were given by keyword.
    """

    leaves: list[Any]
    dims: tuple[int | None, ...]
    size: int
    specs: list[tuple[optree.PyTreeSpec, int]]
    names: tuple[str, ...]

    def call(self, fn: Callable[..., Any], leaves: Sequence[Any]) -> Any:
        """The result of a function with other leaves in the arguments."""
        rebuilt, start = [], 0
        for spec, count in self.specs:
            rebuilt.append(optree.tree_unflatten(spec, leaves[start : start + count]))
            start += count
        if not self.names:
            return fn(*rebuilt)
        first = len(rebuilt) - len(self.names)
        return fn(*rebuilt[:first], **dict(zip(self.names, rebuilt[first:], strict=True)))


def taken_apart(in_dims: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
    """The arguments of a batched call with their axes, checked.

    Raises:
        ArgumentError: `in_dims` does not fit the arguments.
        BatchingError: the axes differ in length, or there are none.
    """
    sizes: list[_Length] = []
    leaves: list[Any] = []
    dims: list[int | None] = []
    specs = []
    names = (*range(len(args)), *kwargs)
    axes = (*_axes(in_dims, args), *[0] * len(kwargs))
    for name, value, axis in zip(names, (*args, *kwargs.values()), axes, strict=True):
        own, structure = flatten(value)
        along = broadcast(f"argument {name!r}", axis, value, len(own))
        specs.append((structure.spec, len(own)))
        for about, leaf, dim in zip(structure.leaves, own, along, strict=True):
            found = _check(name, about, leaf, dim, sizes)
            leaves.append(leaf.movedim(found, 0) if found else leaf)
            dims.append(None if found is None else 0)
    if not sizes:
        raise BatchingError(
            f"vmap: there is nothing to batch over: no tensor among the arguments has an axis in in_dims={in_dims}."
        )
    return Batch(leaves, tuple(dims), sizes[0].size, specs, tuple(kwargs))


def _axes(in_dims: Any, args: tuple) -> tuple[Any, ...]:
    if not isinstance(in_dims, (tuple, list)):
        return (in_dims,) * len(args)
    if len(in_dims) != len(args):
        raise ArgumentError(
            f"vmap: in_dims has {len(in_dims)} entries, but the function was called with {len(args)} positional "
            f"arguments: one entry for each, None for an argument that all examples share."
        )
    return tuple(in_dims)


class _Length(NamedTuple):
    """The length of an axis to batch over, and where it was found: text is made of it for errors alone."""

    size: int
    name: int | str
    path: str
    leaf: Tensor
    dim: int

    def __str__(self) -> str:
        return f"{_place(self.name, self.path)} is {short(self.leaf)} with length {self.size} on axis {self.dim}"


def _place(name: int | str, path: str) -> str:
    return f"argument {name!r}, {path!r}" if path else f"argument {name!r}"


def broadcast(label: str, axis: Any, value: Any, count: int, option: str = "in_dims") -> list[Any]:
    """One axis for every leaf of an argument, or of a result. None is an axis here, not an absent child.

    Args:
        label: what to call it in errors.
        axis: an int, None, or a tree of them.
        value: what they are for.
        count: its number of leaves.
        option: which option `axis` comes from.

    Raises:
        ArgumentError: `axis` does not fit.
    """
    if (axis is None and option == "in_dims") or (isinstance(axis, int) and not isinstance(axis, bool)):
        return [axis] * count
    axes, values = one_level(axis), one_level(value)
    if axes is None or values is None or type(axis) is not type(value) or axes.entries != values.entries:
        raise ArgumentError(
            f"vmap: the entry of {option} for {label} must be an int{', None,' if option == 'in_dims' else ''} or a "
            f"tree like it; got {axis!r} for {short(value) if values is None else f'a {type(value).__name__}'}."
        )
    pairs = zip(axes.children, values.children, strict=True)
    return [
        dim
        for below, child in pairs
        for dim in broadcast(label, below, child, optree.tree_structure(child).num_leaves, option)
    ]


def _check(name: int | str, about: Leaf, leaf: Any, dim: int | None, sizes: list[_Length]) -> int | None:
    if dim is None or not isinstance(leaf, Tensor):
        return None
    if leaf.layout is not torch.strided or leaf.is_nested:
        raise BatchingError(
            f"vmap: {_place(name, about.path)} is not dense, but {'nested' if leaf.is_nested else leaf.layout}, and "
            f"has no axis to batch over. {NOT_DENSE[1]}"
        )
    if not -leaf.dim() <= dim < leaf.dim():
        where = _place(name, about.path)
        raise BatchingError(f"vmap: {where} is {short(leaf)} and has no axis {dim} to batch over; use None in in_dims.")
    size = leaf.shape[dim]
    # No dict: the length can be a symbol, which has no hash.
    if all(size != other.size for other in sizes):
        sizes.append(_Length(size, name, about.path, leaf, dim))
    if len(sizes) > 1:
        raise BatchingError(
            f"vmap: the axes to batch over differ in length: {' but '.join(map(str, sizes))}. Use None in in_dims for "
            f"an argument that all examples share."
        )
    return dim
