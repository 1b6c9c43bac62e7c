"""Parts of data along its leading axis."""

from typing import Any

import optree
from torch import Tensor

from purenn.errors import BatchingError
from purenn.tree._walk import flatten, short


def entry(data: Any, place: int | slice) -> Any:
    """The data at a place of the leading axis of each of its tensors; other leaves as they are."""
    return optree.tree_map(lambda leaf: leaf[place] if isinstance(leaf, Tensor) else leaf, data)


def count_of(name: str, tasks: tuple) -> int:
    """How many tasks some arguments have.

    Args:
        name: of the function, for errors.
        tasks: its arguments after the parameters.

    Raises:
        BatchingError: none, or not all the same number.
    """
    sizes: dict[int, str] = {}
    for position, argument in enumerate(tasks, 1):
        leaves, structure = flatten(argument)
        for path, leaf in zip(structure.paths, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                continue
            where = f"argument {position}{f', {path!r},' if path else ''}"
            if not leaf.dim() or not len(leaf):
                raise BatchingError(f"{name}: {where} is {short(leaf)} and has no leading axis with tasks.")
            sizes.setdefault(len(leaf), f"{where} is {short(leaf)}")
    if len(sizes) != 1:
        what = "the numbers of tasks differ: " + " but ".join(sizes.values()) if sizes else "there are no tasks"
        raise BatchingError(f"{name}: {what}. Every tensor after the parameters has a leading axis for the tasks.")
    return next(iter(sizes))
