"""Sums, means and copies of trees over processes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from purenn._modes import is_plain
from purenn.distributed._world import rank_and_size
from purenn.errors import ArgumentError, TransformError
from purenn.tree import named_leaves
from purenn.tree._walk import flatten, quoted, short

T = TypeVar("T")


def sum(tree: T, group: ProcessGroup | None = None) -> T:
    """The sum of the trees of all processes, in each of them.

    Args:
        tree: a tree of tensors, of the same structure and shapes in all processes: sums of clipped per-sample
            gradients, for instance. Leaves of one dtype travel in one message.
        group: the processes. Default: all.

    Returns:
        A new tree, bitwise equal in all processes.

    Raises:
        ArgumentError: a leaf is a DTensor, or several processes were launched, but there is no process group.
        TransformError: within `grad`, `vmap` or `jit`.
        RuntimeError: torch's, if another process is gone or does not answer within the time-out of the process group.
    """
    return _reduced("sum", tree, group, lambda total, _: total)


def mean(tree: T, group: ProcessGroup | None = None) -> T:
    """The mean of the trees of all processes, in each of them: that of the gradients, in data-parallel training.

    Args:
        tree: a tree of floating or complex tensors, of the same structure and shapes in all processes. Leaves of one
            dtype travel in one message.
        group: the processes. Default: all.

    Returns:
        A new tree, bitwise equal in all processes.

    Raises:
        ArgumentError: a leaf is a DTensor or has integers, or several processes were launched, but there is no process
            group.
        TransformError: within `grad`, `vmap` or `jit`.
        RuntimeError: torch's, if another process is gone or does not answer within the time-out of the process group.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = Linear.init(pn.random.key(0), 3, 2)
        >>> x = pn.distributed.rank_rows(torch.randn(8, 3))
        >>> grads = pn.distributed.mean(pn.grad(lambda p: p(x).square().mean())(p))
    """
    for path, leaf in _tensors(tree):
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise ArgumentError(f"mean: {quoted(path)} is {short(leaf)}, and the mean of integers is none: use sum.")
    return _reduced("mean", tree, group, lambda total, size: total / size)


def from_rank(tree: T, rank: int = 0, group: ProcessGroup | None = None) -> T:
    """The tree of one process, in each of them: parameters that only one has read, for instance.

    Args:
        tree: a tree of tensors, of the same structure and shapes in all processes.
        rank: the process whose tree it is. Default: 0.
        group: the processes. Default: all.

    Returns:
        A new tree.

    Raises:
        ArgumentError: there is no such process, a leaf is a DTensor, or several processes were launched, but there is
            no process group.
        TransformError: within `grad`, `vmap` or `jit`.
        RuntimeError: torch's, if another process is gone or does not answer within the time-out of the process group.
    """
    size = rank_and_size("from_rank", group)[1]
    if not 0 <= rank < size:
        raise ArgumentError(f"from_rank: there is no process {rank}, they are 0 to {size - 1}.")
    return _exchanged("from_rank", tree, group, lambda joined: dist.broadcast(joined, group=group, group_src=rank))


def _reduced(name: str, tree: T, group: ProcessGroup | None, after: Callable[[Tensor, int], Tensor]) -> T:
    size = rank_and_size(name, group)[1]
    return _exchanged(name, tree, group, lambda joined: dist.all_reduce(joined, group=group), lambda t: after(t, size))


def _exchanged(
    name: str,
    tree: T,
    group: ProcessGroup | None,
    exchange: Callable[[Tensor], Any],
    after: Callable[[Tensor], Tensor] = lambda joined: joined,
) -> T:
    """The tree after its leaves, joined to one tensor for each dtype and device, have been exchanged."""
    values, structure = flatten(tree)
    _require_local(name, tree)
    alone = rank_and_size(name, group)[1] == 1
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for number, value in enumerate(values):
        if isinstance(value, Tensor):
            kinds.setdefault((value.dtype, value.device), []).append(number)
    for places in kinds.values():
        leaves = [values[place].detach() for place in places]
        joined = torch.cat([leaf.reshape(-1) for leaf in leaves])
        if not alone:
            exchange(torch.view_as_real(joined) if joined.is_complex() else joined)
        parts = after(joined).split([leaf.numel() for leaf in leaves])
        for place, leaf, part in zip(places, leaves, parts, strict=True):
            values[place] = part.view(leaf.shape)
    return structure.rebuild(values)


def _tensors(tree: Any) -> list[tuple[str, Tensor]]:
    return [(path, leaf) for path, leaf in named_leaves(tree) if isinstance(leaf, Tensor)]


def _require_local(name: str, tree: Any) -> None:
    for path, leaf in _tensors(tree):
        if isinstance(leaf, DTensor):
            raise ArgumentError(
                f"{name}: {quoted(path)} is a DTensor, which is of all processes already: bring gradients into the "
                f"places of their parameters with pn.distributed.place_like(grads, params)."
            )
        if not is_plain(leaf):
            raise TransformError(
                f"{name}: processes cannot talk within grad, vmap or jit: call it on the result of the transformed "
                f"function."
            )
        if torch.is_grad_enabled() and leaf.requires_grad:
            raise TransformError(
                f"{name}: {quoted(path)} requires grad, which would be cut off: call it after the gradient is taken, "
                f"or under torch.no_grad()."
            )
