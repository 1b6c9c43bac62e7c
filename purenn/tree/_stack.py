"""Ensembles as one tree: stacking equal trees along a new leading axis and taking them apart."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from purenn.errors import ArgumentError, StructureError
from purenn.tree._checks import a_or_an
from purenn.tree._map import structures_differ
from purenn.tree._walk import fits, flatten, quoted, short

T = TypeVar("T")


def stack(trees: Sequence[T], *, dim: int = 0) -> T:
    """One tree whose leaves are the stacked leaves of several trees of the same structure.

    Args:
        trees: at least one tree; leaf shapes and dtypes must agree. Leaves that are no tensors must be equal.
        dim: where the new axis goes.

    Raises:
        ArgumentError: no trees, or no list of them.
        StructureError: the trees differ, or a leaf has no place for the axis; the error names the path.
    """
    if not isinstance(trees, Iterable) or isinstance(trees, Tensor):
        raise ArgumentError(f"stack takes a list of trees, got {a_or_an(trees)}: write stack([first, second]).")
    trees = list(trees)
    if not trees:
        raise ArgumentError("stack needs at least one tree, got none.")
    flat = [flatten(tree) for tree in trees]
    structure = flat[0][1]
    for other, (_, other_structure) in zip(trees[1:], flat[1:], strict=True):
        if not fits(other_structure.spec, structure.spec):
            raise structures_differ("stack", trees[0], other)
    columns = zip(*(values for values, _ in flat), strict=True)
    return structure.rebuild(
        [_stacked(path, values, dim) for path, values in zip(structure.paths, columns, strict=True)]
    )


def _stacked(path: str, values: tuple[Any, ...], dim: int) -> Any:
    first = values[0]
    for number, value in enumerate(values):
        if isinstance(first, Tensor) and isinstance(value, Tensor):
            same = (first.shape, first.dtype, first.device) == (value.shape, value.dtype, value.device)
        else:
            same = type(first) is type(value) and first == value
        if not same:
            raise StructureError(
                f"stack: {quoted(path)} is {_placed(first)} in tree 0 and {_placed(value)} in tree {number}; all must "
                f"have the same shape, dtype and device."
            )
    if not isinstance(first, Tensor):
        return first
    if not -first.dim() - 1 <= dim <= first.dim():
        raise StructureError(f"stack: {quoted(path)} is {short(first)} and has no place for a new axis {dim}.")
    return torch.stack(values, dim)


def _placed(value: Any) -> str:
    return f"{short(value)} on {value.device}" if isinstance(value, Tensor) else short(value)


def unstack(tree: T, *, dim: int = 0) -> tuple[T, ...]:
    """The trees that `stack` has put together, as views.

    Raises:
        StructureError: the leaves disagree in the length of the axis, or lack it.
    """
    values, structure = flatten(tree)
    length, first = None, ""
    for path, value in zip(structure.paths, values, strict=True):
        if not isinstance(value, Tensor):
            continue
        if not -value.dim() <= dim < value.dim():
            raise StructureError(f"unstack: {quoted(path)} is {short(value)} and has no axis {dim}.")
        if length is None:
            length, first = value.shape[dim], path
        elif value.shape[dim] != length:
            raise StructureError(
                f"unstack: axis {dim} has length {length} in '{first}', but {value.shape[dim]} in '{path}'."
            )
    if length is None:
        raise StructureError("unstack: the tree has no tensors, so the number of trees is unknown.")
    columns = [value.unbind(dim) if isinstance(value, Tensor) else (value,) * length for value in values]
    return tuple(structure.rebuild(row) for row in zip(*columns, strict=True))
