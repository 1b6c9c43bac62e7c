"""The leaves of parameters, gradients and state that belong together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from purenn.errors import DeviceError, PurennError, ShapeError
from purenn.tree import HOLE
from purenn.tree._map import filled, flatten_with_holes, structures_differ
from purenn.tree._walk import fits, flatten, quoted, same_structure, short, unflatten

Positions = tuple[tuple[int, ...] | None, ...]

_POSITIONS: dict[tuple[optree.PyTreeSpec, ...], Positions] = {}
_MOST_POSITIONS = 1024


class Aligned(NamedTuple):
    """Trees taken apart, with those leaves side by side that every one of them has and that are trained.

    Attributes:
        optimizer: its name, for errors.
        leaves: all leaves of the parameters, of the gradients, and of the trees of the state.
        specs: the structures of these trees.
        positions: where in each of these lists the leaves are that are side by side; None for everywhere.
        columns: for each tree, these leaves.
    """

    optimizer: str
    leaves: list[list[Any]]
    specs: tuple[optree.PyTreeSpec, ...]
    positions: Positions
    columns: list[list[Any]]

    @classmethod
    def of(cls, optimizer: str, params: Any, grads: Any, state: Sequence[Any]) -> "Aligned":
        """Take trees apart.

        Raises:
            StructureError: they differ in structure, but for holes.
        """
        trees = (params, grads, *state)
        flat = [optree.tree_flatten(tree) for tree in trees]
        leaves, specs = [leaves for leaves, _ in flat], tuple([spec for _, spec in flat])
        if is_dynamo_compiling():  # which cannot look a structure up
            positions = _positions(optimizer, trees, specs)
        else:
            found = _POSITIONS.get(specs)
            if found is None:
                found = _positions(optimizer, trees, specs)
                if len(_POSITIONS) >= _MOST_POSITIONS:
                    _POSITIONS.clear()
                _POSITIONS[specs] = found
            positions = found
        columns = [_taken(leaves, places) for leaves, places in zip(leaves, positions, strict=True)]
        return cls(optimizer, leaves, specs, positions, columns)

    def with_gradients(self, grads: Any) -> "Aligned | None":
        """The same with other gradients; None if these have another structure."""
        leaves, spec = optree.tree_flatten(grads)
        if spec != self.specs[1]:
            return None
        column = _taken(leaves, self.positions[1])
        every = [self.leaves[0], leaves, *self.leaves[2:]]
        return Aligned(self.optimizer, every, self.specs, self.positions, [self.columns[0], column, *self.columns[2:]])

    def with_results(self, new: list[list[Any]]) -> "Aligned":
        """The same with other leaves for the columns of the parameters and of the state, and without gradients."""
        columns = [new[0], [], *new[1:]]
        leaves: list[list[Any]] = []
        for number, (old, places, column) in enumerate(zip(self.leaves, self.positions, columns, strict=True)):
            leaves.append(column if places is None or number == 1 else _put(old, places, column))
        return Aligned(self.optimizer, leaves, self.specs, self.positions, columns)

    def tree(self, number: int) -> Any:
        """One of the trees."""
        return unflatten(self.specs[number], self.leaves[number])

    def updates(self, values: list[Any]) -> Any:
        """Values for the gradients' column as a tree with holes everywhere else."""
        places, spec = self.positions[1], self.specs[1]
        if places is None:
            return unflatten(spec, values)
        return unflatten(spec, _put([HOLE] * len(self.leaves[1]), places, values))

    def paths(self) -> list[str]:
        """The dotted paths of the leaves that are side by side."""
        return _taken(flatten(self.tree(0))[1].paths, self.positions[0])

    def require_alike(self, *, shapes: bool, gradients_only: bool = False) -> None:
        """Refuse gradients of another shape than their parameter, and leaves on another device.

        Args:
            shapes: whether the leaves of the state must have the shape of their parameter as well.
            gradients_only: whether the leaves of the state have been checked before. Default: False.

        Raises:
            ShapeError: a shape differs.
            DeviceError: a device differs.
        """
        columns = self.columns[:2] if gradients_only else self.columns
        wanted = [leaf.shape for leaf in columns[0]]
        for number, column in enumerate(columns[1:], 1):
            if (shapes or number == 1) and [leaf.shape for leaf in column] != wanted:
                self._refuse(number, short, "shape", ShapeError)
        if not all([leaf.is_cpu for column in columns for leaf in column]):  # noqa: C419
            for number, column in enumerate(columns[1:], 1):
                if [leaf.device for leaf in column] != [leaf.device for leaf in columns[0]]:
                    self._refuse(number, lambda leaf: f"on {leaf.device}", "device", DeviceError)

    def _refuse(self, number: int, shown: Callable[[Tensor], str], what: str, error: type[PurennError]) -> None:
        for path, value, other in zip(self.paths(), self.columns[0], self.columns[number], strict=True):
            if getattr(value, what) != getattr(other, what):
                raise error(
                    f"{self.optimizer}: the {'gradient' if number == 1 else 'state'} of {quoted(path)} is "
                    f"{shown(other)}, but the parameter is {shown(value)}; both must have the same {what}."
                )


def _taken(leaves: list[Any], places: tuple[int, ...] | None) -> list[Any]:
    return leaves if places is None else [leaves[n] for n in places]


def _put(leaves: Sequence[Any], places: tuple[int, ...], values: list[Any]) -> list[Any]:
    new = list(leaves)
    for place, value in zip(places, values, strict=True):
        new[place] = value
    return new


def _positions(optimizer: str, trees: tuple[Any, ...], specs: tuple[optree.PyTreeSpec, ...]) -> Positions:
    leaves, structure = flatten(trees[0])
    if len(structure.candidates) == len(leaves) and all(same_structure(spec, specs[0]) for spec in specs[1:]):
        return (None,) * len(trees)
    flat = [flatten_with_holes(tree) for tree in trees]
    for number, (_, spec) in enumerate(flat):
        if not fits(spec, flat[0][1]):
            what = "gradients" if number == 1 else "state"
            raise structures_differ(f"{optimizer}, parameters and {what}", filled(trees[0]), filled(trees[number]))
    numbers = [_numbered(items) for items, _ in flat]
    trained = set(structure.candidates)
    rows = [row for row in zip(*numbers, strict=True) if None not in row and row[0] in trained]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(trees)
    return tuple(
        [None if len(column) == spec.num_leaves else column for column, spec in zip(columns, specs, strict=True)]
    )


def _numbered(items: list[Any]) -> list[int | None]:
    # The position of each leaf among the leaves, None for a hole.
    found, count = [], 0
    for item in items:
        found.append(None if item is HOLE else count)
        count += item is not HOLE
    return found
