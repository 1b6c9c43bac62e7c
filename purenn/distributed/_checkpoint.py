"""Trees of many processes on disk, by torch.distributed.checkpoint: every process writes and reads its own part."""

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from purenn.distributed._listing import Reader
from purenn.distributed._world import rank_and_size
from purenn.errors import CheckpointError
from purenn.tree import named_leaves
from purenn.tree._misfits import alike, misfits
from purenn.tree._walk import flatten, quoted

T = TypeVar("T")

_LIST = ".metadata"


def save(folder: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree of tensors and DTensors to a folder, under their paths. To be called by all processes.

    A tree of one process is better saved by `pn.save`.

    Args:
        folder: the folder, which all processes see; it is made if it is not there. It takes one tree, so that files of
            two are never mixed.
        tree: the tree, with the same structure in all processes. Of what all have, one copy is written.

    Raises:
        CheckpointError: a leaf is no tensor, or there is a tree in the folder already.
        ArgumentError: several processes were launched, but there is no process group.
    """
    alone = rank_and_size("save", None)[1] == 1
    tensors = dict(named_leaves(tree))
    for path, leaf in tensors.items():
        if not isinstance(leaf, Tensor):
            raise CheckpointError(f"save: {quoted(path)} is {leaf!r}, no tensor: store it as a tensor.")
    if (Path(folder) / _LIST).exists():
        raise CheckpointError(f"save: {os.fspath(folder)} has a tree already: give each a folder of its own.")
    state_dict_saver.save(_named(tensors), checkpoint_id=folder, no_dist=alone)


def load(folder: str | os.PathLike[str], *, like: T) -> T:
    """Read a tree that `save` has written. To be called by all processes.

    torch keeps the list of what is in the folder as a pickle. Nothing in it is run: what is no list of tensors in files
    of this folder is refused.

    Args:
        folder: the folder.
        like: a tree with the same paths, shapes and dtypes. Every process reads the parts that it has there, which may
            be cut in another way than they were.

    Returns:
        A new tree; `like` is not touched.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged; or it lacks leaves, has others, or has leaves of
            other shapes or dtypes. All of them are listed in one error.
        ArgumentError: several processes were launched, but there is no process group.
    """
    alone = rank_and_size("load", None)[1] == 1
    if not (Path(folder) / _LIST).is_file():
        raise CheckpointError(f"load: there is no checkpoint of pn.distributed.save in {os.fspath(folder)}.")
    values, structure = flatten(like)
    wanted = _named(dict(zip(structure.paths, values, strict=True)))
    reader = Reader(folder)
    try:
        stored = _described(reader.read_metadata())
    except Exception as error:  # a damaged list can fail in any way
        raise CheckpointError(f"load: the list of what is in {os.fspath(folder)} cannot be read: {error}.") from error
    problems = misfits(wanted, stored, source="folder", target="tree", fits=alike)
    if problems:
        raise CheckpointError(
            f"load: {os.fspath(folder)} does not fit the tree:\n  " + "\n  ".join(problems) + "\n"
            "Give a tree of the structure that was saved."
        )
    read = {name: torch.empty_like(value) for name, value in wanted.items()}
    state_dict_loader.load(read, storage_reader=reader, no_dist=alone)
    return structure.rebuild(read.values())


def _named(tensors: dict[str, Any]) -> dict[str, Any]:
    # A tree that is one tensor has an empty path.
    return {path or "leaf": tensor for path, tensor in tensors.items()}


def _described(metadata: Metadata) -> dict[str, Any]:
    """What is stored, as tensors without data."""
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        if isinstance(entry, TensorStorageMetadata)
        else entry
        for name, entry in metadata.state_dict_metadata.items()
    }
