"""Saving and loading the tensors of a tree as safetensors, by path names."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from purenn.errors import CheckpointError
from purenn.tree._checksum import checksum
from purenn.tree._stored import CHECKSUM, FORMAT, alike, misfits, read, tensors_of_file
from purenn.tree._walk import flatten, quoted, short

T = TypeVar("T")


def save(path: str | os.PathLike[str], tree: Any, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors of a tree to a safetensors file under their dotted paths. Nothing is pickled.

    The file appears whole or not at all: it is written beside its place, flushed to disk and renamed.

    Args:
        path: the file.
        tree: the tree. A tied leaf is stored once. Structure and static fields are not stored: `load` takes them from
            the tree that it is given. A checksum is, by which `load` finds damage.
        metadata: text to keep in the file's header.

    Raises:
        CheckpointError: a leaf is no tensor, or one that the format cannot hold (meta, sparse, complex128); the
            metadata is not text; there is no such folder.
    """
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        reason = "it is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise CheckpointError(f"save: {target} cannot be written: {reason}.")
    for key, text in (metadata or {}).items():
        if not (isinstance(key, str) and isinstance(text, str)):
            raise CheckpointError(f"save: metadata must map text to text, got {key!r}: {text!r}.")
    values, structure = flatten(tree)
    tensors: dict[str, Tensor] = {}
    kept: set[int] = set()
    for leaf, value in zip(structure.leaves, values, strict=True):
        _require_storable(leaf.path, value)
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[leaf.path or "leaf"] = tensor.clone() if storage in kept else tensor
        kept.add(storage)
    text = {**(metadata or {}), CHECKSUM: checksum(tensors), FORMAT: "1"}
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)
        permissions = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=text)
        temporary.chmod(permissions)  # safetensors makes files that only their owner can read
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _require_storable(path: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"save: {quoted(path)} is {value!r}, no tensor: store it as a tensor, or declare the field as pn.static()."
        )
    if value.is_meta:
        raise CheckpointError(f"save: {quoted(path)} ({short(value)}) is on the meta device and has no data.")
    if value.layout != torch.strided:
        raise CheckpointError(f"save: {quoted(path)} ({short(value)}) is sparse: save its .to_dense().")
    if value.dtype in _NOT_IN_FORMAT:
        raise CheckpointError(
            f"save: {quoted(path)} ({short(value)}) has a dtype that safetensors files cannot hold: "
            f"{_NOT_IN_FORMAT[value.dtype]}."
        )
    if path == "__metadata__":
        raise CheckpointError("save: '__metadata__' is reserved in safetensors files: rename the dict key.")


_NOT_IN_FORMAT = {
    torch.complex128: "save torch.view_as_real(x), or cast to complex64",
    torch.complex32: "cast to complex64",
}


def load(path: str | os.PathLike[str], *, like: T) -> T:
    """Read a file written by `save` into a tree of the structure of `like`.

    Args:
        path: the file.
        like: a tree with the same paths, shapes and dtypes; it may be on the meta device. The loaded leaves are on the
            devices of its leaves, on the CPU for meta ones.

    Returns:
        A new tree; `like` is not touched.

    Raises:
        CheckpointError: there is no such file, or it is no safetensors file, or it is damaged, or it lacks leaves, has
            others, or has leaves of other shapes or dtypes. All of them are listed in one error.
    """
    values, structure = flatten(like)
    wanted = {leaf.path or "leaf": value for leaf, value in zip(structure.leaves, values, strict=True)}
    stored = tensors_of_file("load", path)
    problems = misfits(wanted, stored, source="file", target="tree", fits=alike)
    if problems:
        raise CheckpointError(
            f"load: {os.fspath(path)} does not fit the tree:\n  " + "\n  ".join(problems) + "\n"
            "Give a tree of the structure that was saved."
        )
    cpu = torch.device("cpu")
    loaded = [stored[name].to(cpu if value.is_meta else value.device) for name, value in wanted.items()]
    return structure.rebuild(loaded)


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that `save` has kept in a file's header.

    Raises:
        CheckpointError: there is no such file, or it is no safetensors file.
    """
    text = read("metadata", path, lambda file: dict(file.metadata() or {}))
    return {key: value for key, value in text.items() if key not in (CHECKSUM, FORMAT)}
