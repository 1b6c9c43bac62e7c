"""Which of how many processes this is."""

import os
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from purenn.errors import ArgumentError
from purenn.random import fold_in
from purenn.tree import map as tree_map
from purenn.tree import named_leaves
from purenn.tree._walk import quoted, short

T = TypeVar("T")


def rank_and_size(name: str, group: ProcessGroup | None) -> tuple[int, int]:
    """The number of this process and how many there are; `name` is the function to name in errors.

    Raises:
        ArgumentError: several processes were launched, but they do not know of each other yet.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(group), dist.get_world_size(group)
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise ArgumentError(
            f"{name}: this is one of {launched} processes, but there is no process group, so each would work for "
            f"itself: call torch.distributed.init_process_group() first."
        )
    return 0, 1


def rank_key(key: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """A key of this process's own, made from one that all processes have.

    Args:
        key: the key, the same in all processes.
        group: the processes. Default: all.

    Raises:
        ArgumentError: several processes were launched, but there is no process group.

    Example:
        >>> import purenn as pn
        >>> key = pn.distributed.rank_key(pn.random.key(0))
    """
    return fold_in(key, rank_and_size("rank_key", group)[0])


def rank_rows(batch: T, group: ProcessGroup | None = None) -> T:
    """The rows of a batch that are this process's share: the n-th of as many equal parts as there are processes.

    Args:
        batch: a tree of tensors with the same number of rows, the same in all processes.
        group: the processes. Default: all.

    Raises:
        ArgumentError: the rows cannot be divided equally (so that a mean of means would not be the mean), or several
            processes were launched, but there is no process group.

    Example:
        >>> import torch, purenn as pn
        >>> images, labels = pn.distributed.rank_rows((torch.zeros(8, 4), torch.zeros(8)))
    """
    rank, size = rank_and_size("rank_rows", group)
    for path, leaf in named_leaves(batch):
        if not leaf.dim() or len(leaf) % size:
            raise ArgumentError(
                f"rank_rows: {quoted(path)} is {short(leaf)}, whose rows cannot be divided among {size} processes: use "
                f"a multiple of {size}."
            )
    return tree_map(lambda leaf: leaf[len(leaf) // size * rank : len(leaf) // size * (rank + 1)], batch)
