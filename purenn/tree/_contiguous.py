"""Storage of a tree as one buffer, so that one kernel can work on all its leaves.

A contiguous tree is an ordinary tree: its leaves are views. What makes it contiguous is only where they lie, one behind
the other, so it is recognised by looking, and remembered for containers, which cannot change.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from purenn._modes import is_plain
from purenn.tree._fields import is_container
from purenn.tree._memory import empty
from purenn.tree._walk import flatten, is_trainable

T = TypeVar("T")

# Leaves start where a vector instruction can load them, and where a matrix product on a GPU is fast.
_ALIGNMENT = 64

Kind = tuple[torch.dtype, torch.device]
Shapes = tuple[tuple[torch.dtype, torch.device, torch.Size], ...]


class Storage(NamedTuple):
    """Where the trainable leaves of a contiguous tree lie.

    Attributes:
        leaves: the trainable leaves.
        buffers: for each dtype and device, the 1-dimensional stretch of memory that these leaves share.
        shapes: dtype, device and shape of each leaf: trees that agree in this have the same layout.
    """

    leaves: list[Tensor]
    buffers: list[Tensor]
    shapes: Shapes


_SHAPES: dict[Shapes, Shapes] = {}
_MOST_SHAPES = 1024

_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def contiguous(tree: T) -> T:
    """A copy of a tree whose leaves are views of one buffer for each dtype and device.

    An optimiser's `step` on such a tree is one kernel instead of one for each leaf, provided that the gradients and the
    state have the same layout: an optimiser's `init` of a contiguous tree makes a contiguous state, and
    ``pn.tree.contiguous(grads)`` a contiguous gradient. Every leaf is in row-major order and starts at a multiple of 64
    bytes; the trainable leaves come first. Whatever makes new leaves, `pn.tree.map` or `pn.tree.to`, makes an ordinary
    tree again. Leaves that are no tensors stay as they are.

    Args:
        tree: the tree; it is not changed.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = pn.tree.contiguous(Linear.init(pn.random.key(0), 3, 2))
        >>> p.weight.untyped_storage().data_ptr() == p.bias.untyped_storage().data_ptr()
        True
    """
    values, structure = flatten(tree)
    trained = [is_trainable(leaf, value) for leaf, value in zip(structure.leaves, values, strict=True)]
    order = [n for n, hit in enumerate(trained) if hit] + [n for n, hit in enumerate(trained) if not hit]
    tensors = [n for n in order if isinstance(values[n], Tensor)]
    for numbers in _by_kind([values[n] for n in tensors]).values():
        places = [tensors[number] for number in numbers]
        views = _views(_joined([values[n] for n in places]), [values[n] for n in places])
        for place, view in zip(places, views, strict=True):
            values[place] = view
    made = structure.rebuild(values)
    own = [value for value, hit in zip(values, trained, strict=True) if hit]
    buffers = segments(own) if is_container(made) else None
    if buffers is not None:
        remember(made, Storage(own, buffers, kinds_of(own)))
    return made


def remember(tree: Any, storage: Storage) -> None:
    """Note where the trainable leaves of a contiguous tree lie."""
    if is_container(tree):
        _KNOWN[tree] = storage


def kinds_of(leaves: Sequence[Tensor]) -> Shapes:
    """Dtype, device and shape of each leaf, one object for all that are equal: so they are compared in no time."""
    found = tuple([(leaf.dtype, leaf.device, leaf.shape) for leaf in leaves])
    if len(_SHAPES) >= _MOST_SHAPES:
        _SHAPES.clear()
    return _SHAPES.setdefault(found, found)


def storage_of(tree: Any) -> Storage | None:
    """What is remembered of a contiguous tree, None if nothing is."""
    return _KNOWN.get(tree) if is_container(tree) else None


def segments(leaves: Sequence[Tensor]) -> list[Tensor] | None:
    """For each dtype and device, the stretch of memory in which its leaves lie as `contiguous` lays them out.

    None if they do not.
    """
    if not leaves or not is_plain() or leaves[0]._base is None:
        return None
    found = []
    for numbers in _by_kind(leaves).values():
        group = [leaves[n] for n in numbers]
        base, first = group[0]._base, group[0].storage_offset()
        if base is None or base.dim() != 1 or base.dtype != group[0].dtype or not base.is_contiguous():
            return None
        starts, length = _layout(group)
        for leaf, start in zip(group, starts, strict=True):
            if leaf._base is not base or leaf.storage_offset() != first + start or not leaf.is_contiguous():
                return None
        found.append(base.narrow(0, first - base.storage_offset(), length))
    return found


def views_like(buffers: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of the shapes of `leaves`, which are contiguous, in buffers without a graph laid out as theirs."""
    made: list[Tensor] = list(leaves)
    for buffer, numbers in zip(buffers, _by_kind(leaves).values(), strict=True):
        first, (starts, _) = buffer.storage_offset(), _layout([leaves[n] for n in numbers])
        for number, start in zip(numbers, starts, strict=True):
            leaf = leaves[number]
            made[number] = buffer.as_strided(leaf.shape, leaf.stride(), first + start)
    return made


def _by_kind(leaves: Sequence[Tensor]) -> dict[Kind, list[int]]:
    groups: dict[Kind, list[int]] = {}
    for number, leaf in enumerate(leaves):
        groups.setdefault((leaf.dtype, leaf.device), []).append(number)
    return groups


def _step(leaf: Tensor) -> int:
    # Elements from one aligned place to the next.
    return max(1, _ALIGNMENT // leaf.element_size())


def _layout(leaves: Sequence[Tensor]) -> tuple[list[int], int]:
    # Where each leaf starts, and where the last one ends.
    step = _step(leaves[0])
    starts, end = [], 0
    for leaf in leaves:
        starts.append(-(-end // step) * step)
        end = starts[-1] + leaf.numel()
    return starts, end


def _joined(leaves: Sequence[Tensor]) -> Tensor:
    starts, end = _layout(leaves)
    padding = leaves[0].detach().new_zeros(_step(leaves[0]))
    pieces = []
    for leaf, start, following in zip(leaves, starts, [*starts[1:], end], strict=True):
        pieces += [leaf.reshape(-1), padding[: following - start - leaf.numel()]]
    if leaves[0].is_cpu and is_plain(*leaves) and not (torch.is_grad_enabled() and _any_requires_grad(leaves)):
        return torch.cat(pieces, out=empty(end, leaves[0].dtype))
    return torch.cat(pieces)


def _any_requires_grad(leaves: Sequence[Tensor]) -> bool:
    return any(leaf.requires_grad for leaf in leaves)


def _views(buffer: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    starts, _ = _layout(leaves)
    pairs = zip(starts, leaves, strict=True)
    return [buffer.narrow(0, start, leaf.numel()).view(leaf.shape) for start, leaf in pairs]
