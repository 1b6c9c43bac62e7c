"""What an optimiser is: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from purenn.tree import map as tree_map
from purenn.tree import partition

T = TypeVar("T")


class GradientTransformation(NamedTuple):
    """An optimiser as two pure functions; the state is a container.

    Attributes:
        init: ``init(params) -> state``.
        update: ``update(grads, state, params) -> (updates, state)``; `apply_updates` adds the updates to the
            parameters.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


def apply_updates(params: T, updates: Any) -> T:
    """The parameters plus the updates; leaves without an update (buffers, frozen ones) stay as they are."""
    return tree_map(lambda value, update: value + update, params, updates)


def zeros_like(params: T) -> T:
    """Zeros for every trainable leaf, holes elsewhere."""
    return tree_map(lambda value: value.detach().new_zeros(value.shape), partition(params)[0])
