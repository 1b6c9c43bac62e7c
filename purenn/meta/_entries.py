"""Parts of data along its leading axis."""

from typing import Any, NoReturn

import optree
from torch import Tensor

from purenn.errors import BatchingError
from purenn.transforms._leaves import tensors_in
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
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors_in(tasks)}
    if len(sizes) == 1 and 0 not in sizes:
        return sizes.pop()
    _refuse(name, tasks)


def _refuse(name: str, tasks: tuple) -> NoReturn:
    sizes: dict[int, tuple[int, str, Tensor]] = {}
    for position, argument in enumerate(tasks, 1):
        leaves, structure = flatten(argument)
        for path, leaf in zip(structure.paths, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                continue
            if not leaf.dim() or not len(leaf):
                what = _shown(position, path, leaf)
                raise BatchingError(f"{name}: {what} and has no leading axis with tasks.")
            sizes.setdefault(len(leaf), (position, path, leaf))
    differ = " but ".join(_shown(*found) for found in sizes.values())
    what = f"the numbers of tasks differ: {differ}" if sizes else "there are no tasks"
    raise BatchingError(f"{name}: {what}. Every tensor after the parameters has a leading axis for the tasks.")


def _shown(position: int, path: str, leaf: Tensor) -> str:
    return f"argument {position}{f', {path!r},' if path else ''} is {short(leaf)}"
