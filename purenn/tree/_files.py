"""Saving and loading the tensors of a tree as safetensors, by path names."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from purenn.errors import ArgumentError, CheckpointError
from purenn.tree._configuration import configuration_of, differences, is_configuration
from purenn.tree._misfits import alike, misfits
from purenn.tree._partition import selected_leaves
from purenn.tree._select import select
from purenn.tree._shards import SUFFIX, TOTAL_SIZE, remove_index, split, write_shards
from purenn.tree._stored import OWN, Stored, parsed, stored, tensors_of
from purenn.tree._walk import flatten, quoted, short
from purenn.tree._written import DTYPES, beside, write

T = TypeVar("T")

CONFIGURATION = "purenn.configuration"
_LEAF = "leaf"  # the name of a tree that is a tensor


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write the tensors of a tree to safetensors files under their dotted paths. Nothing is pickled.

    The file appears whole or not at all: it is written beside its place, flushed to disk and renamed. What is larger
    than `max_shard_size` goes to several files, ``name-00001-of-00002.safetensors`` and so on, and an index of them,
    ``name.safetensors.index.json``, which comes last: until then an earlier save is what it was. (Where that has files
    of the same names, the new ones have a word more.) Files that an earlier save in this place has left are removed.
    One process at a time may save to a path.

    Beside the tensors stand a checksum of each, by which `load` finds damage, and the classes and static fields of the
    containers as JSON, which `load` compares.

    Args:
        path: the file. For several files its name must end in ``.safetensors``.
        tree: the tree. A tied leaf is stored once.
        metadata: text to keep in the file's header, or in the index.
        max_shard_size: the most bytes of tensors in one file; a tensor that is larger has a file of its own. Default:
            5 GB.

    Raises:
        CheckpointError: a leaf is no tensor, or one that the format cannot hold (meta, sparse, distributed,
            complex128); the metadata is not text, or has a name that is taken; there is no such folder.
        ArgumentError: `max_shard_size` is less than 1.

    Example:
        >>> import tempfile, pathlib, purenn as pn
        >>> from purenn.layers import Linear
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> p = Linear.init(pn.random.key(0), 300, 200)
        >>> pn.save(file, p, max_shard_size=100_000)
        >>> sorted(path.name for path in file.parent.iterdir())[:2]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
        >>> pn.tree.equal(pn.load(file, like=pn.tree.to(p, "meta")), p)
        Comparison(same=True, path=None, reason='')
    """
    target = Path(path)
    if max_shard_size < 1:
        raise ArgumentError(f"save: max_shard_size must be at least 1, got {max_shard_size}.")
    if target.is_dir() or not target.parent.is_dir():
        reason = "it is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise CheckpointError(f"save: {target} cannot be written: {reason}.")
    for key, text in (metadata or {}).items():
        _require_text(key, text)
    values, structure = flatten(tree)
    tensors: dict[str, Tensor] = {}
    for leaf, value in zip(structure.leaves, values, strict=True):
        _require_storable(leaf.path, value)
        tensors[leaf.path or _LEAF] = value
    text = {**(metadata or {}), CONFIGURATION: json.dumps(configuration_of(tree))}
    parts = split(tensors, max_shard_size)
    if len(parts) > 1:
        if not target.name.endswith(SUFFIX):
            raise CheckpointError(f"save: {target} takes {len(parts)} files, so its name must end in {SUFFIX}.")
        write_shards(target, parts, text)
        return
    with beside(target) as temporary:
        write(temporary, tensors, text)
    remove_index(target)


def _require_text(key: Any, text: Any) -> None:
    if not (isinstance(key, str) and isinstance(text, str)):
        raise CheckpointError(f"save: metadata must map text to text, got {key!r}: {text!r}.")
    if key.startswith(OWN) or key in (TOTAL_SIZE, "weight_map"):
        raise CheckpointError(f"save: {key!r} is a name that files need themselves: give the metadata another one.")


def _require_storable(path: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"save: {quoted(path)} is {value!r}, no tensor: store it as a tensor, or declare the field as pn.static()."
        )
    if value.is_meta:
        raise CheckpointError(f"save: {quoted(path)} ({short(value)}) is on the meta device and has no data.")
    if value.layout != torch.strided:
        raise CheckpointError(f"save: {quoted(path)} ({short(value)}) is sparse: save its .to_dense().")
    if is_traceable_wrapper_subclass(value):
        raise CheckpointError(
            f"save: {quoted(path)} ({short(value)}) is a {type(value).__name__}: for DTensors there is "
            f"pn.distributed.save, which every process calls, or save pn.distributed.gather(tree)."
        )
    if value.dtype not in DTYPES:
        raise CheckpointError(
            f"save: {quoted(path)} ({short(value)}) has a dtype that safetensors files cannot hold: "
            f"{_INSTEAD.get(value.dtype, 'cast it to another')}."
        )
    if path == "__metadata__":
        raise CheckpointError("save: '__metadata__' is reserved in safetensors files: rename the dict key.")


_INSTEAD = {
    torch.complex128: "save torch.view_as_real(x), or cast to complex64",
    torch.complex32: "cast to complex64",
}


def load(path: str | os.PathLike[str], *, like: T, paths: str | Sequence[str] | None = None, verify: bool = True) -> T:
    """Read what `save` has written into a tree of the structure of `like`.

    The files are memory-mapped: a leaf on the CPU is a part of the mapped file, and what is written into it stays in
    memory. So with ``verify=False`` nothing is read until it is used, and memory is never needed twice.

    Args:
        path: the file that was given to `save`; or the path of an index, or of a folder with one file or index.
        like: a tree with the same paths, shapes and dtypes; it may be on the meta device. The loaded leaves are on the
            devices of its leaves, on the CPU for meta ones.
        paths: one or several path patterns, as in `pn.tree.partition`: only leaves at or below a hit are read, from
            the files that have them, and all others stay as they are in `like`. What else the file has, or lacks, does
            not count. Default: all leaves.
        verify: whether the tensors are compared with their checksums, for which they are read at once. Default: True.

    Returns:
        A new tree; `like` is not touched.

    Raises:
        CheckpointError: there is no such file, or it is no safetensors file, or it is damaged; it lacks leaves, has
            others, or has leaves of other shapes or dtypes; or it was saved from containers of other classes, or with
            other static fields. All that does not fit is listed in one error.
        SelectionError: `paths` hit nothing.

    Note:
        Of classes and functions the names are compared, without those of their modules; nothing is imported. Static
        fields that are no numbers, text, tuples, dtypes or named functions are compared by class. To put tensors into
        a tree whose options are others, use `bridge.load_state_dict`, which goes by the names of the leaves alone.
    """
    values, structure = flatten(like)
    tops = None if paths is None else select(like).paths(paths).require("load")
    chosen = [True] * len(values) if tops is None else selected_leaves(like, structure, tops)
    wanted = {
        leaf.path or _LEAF: value for leaf, value, hit in zip(structure.leaves, values, chosen, strict=True) if hit
    }
    source = stored("load", path)
    found = tensors_of("load", source, None if tops is None else wanted.keys(), verify=verify)
    problems = misfits(wanted, found, source="file", target="tree", fits=alike)
    problems += _other_options(source, like, wanted, found, None if tops is None else tops.names)
    if problems:
        raise CheckpointError(
            f"load: {os.fspath(path)} does not fit the tree:\n  " + "\n  ".join(problems) + "\n"
            "Give a tree of the structure that was saved."
        )
    names = (leaf.path or _LEAF for leaf in structure.leaves)
    return structure.rebuild(
        found[name].to("cpu" if value.is_meta else value.device) if hit else value
        for name, value, hit in zip(names, values, chosen, strict=True)
    )


def _other_options(
    source: Stored, like: Any, wanted: Mapping[str, Any], found: Mapping[str, Any], tops: Sequence[str] | None
) -> list[str]:
    """How the containers of a file differ from those of a tree, or from those at or below some paths."""
    if CONFIGURATION not in source.text:
        return []
    saved = parsed("load", source.path, source.text[CONFIGURATION])
    if not is_configuration(saved):
        raise CheckpointError(f"load: {source.path} is damaged: its configuration is none.")
    here = configuration_of(like)
    if tops is not None:
        saved, here = (
            {path: node for path, node in side.items() if any(_is_below(path, top) for top in tops)}
            for side in (saved, here)
        )
    try:
        return differences(saved, here, saved_leaves=found, leaves=wanted)
    except RecursionError as error:  # of a hostile file
        raise CheckpointError(f"load: {source.path} is damaged: its configuration is nested too deep.") from error


def _is_below(path: str, top: str) -> bool:
    return not top or path == top or path.startswith(f"{top}.")


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that `save` has kept beside the tensors.

    Args:
        path: as of `load`.

    Raises:
        CheckpointError: there is no such file, or it is no safetensors file, or it is damaged.
    """
    text = stored("metadata", path).text
    return {key: value for key, value in text.items() if not key.startswith(OWN) and key != TOTAL_SIZE}
