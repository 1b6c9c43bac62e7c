"""What speaks against putting stored tensors into a tree."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from purenn.tree._walk import short


def misfits(
    wanted: Mapping[str, Any],
    stored: Mapping[str, Any],
    *,
    source: str,
    target: str,
    fits: Callable[[Tensor, Tensor], bool],
) -> list[str]:
    """What speaks against putting tensors into a tree, a line for each.

    Args:
        wanted: the leaves of the tree by name.
        stored: the tensors by name.
        source: what the tensors are in, for the lines.
        target: what the leaves are in.
        fits: ``fits(stored tensor, leaf)``.
    """
    lines = [f"missing: {name}" for name in wanted if name not in stored]
    lines += [f"unexpected: {name} {short(value)}" for name, value in stored.items() if name not in wanted]
    for name, value in wanted.items():
        found = stored.get(name)
        if not isinstance(value, Tensor):
            lines.append(f"no tensor in the {target}: {name} is {value!r}")
        elif found is not None and not isinstance(found, Tensor):
            lines.append(f"no tensor in the {source}: {name} is {found!r}")
        elif found is not None and not fits(found, value):
            lines.append(f"different: {name} is {short(found)} in the {source}, {short(value)} in the {target}")
    return lines


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in shape and dtype."""
    return (one.shape, one.dtype) == (other.shape, other.dtype)
