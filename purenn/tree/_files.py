"""Saving and loading the tensors of a tree as safetensors, by path names."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from purenn.errors import CheckpointError
from purenn.tree._walk import flatten, quoted, short

T = TypeVar("T")
R = TypeVar("R")


def save(path: str | os.PathLike[str], tree: Any, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors of a tree to a safetensors file under their dotted paths. Nothing is pickled.

    The file appears whole or not at all: it is written beside its place, flushed to disk and renamed.

    Args:
        path: the file.
        tree: the tree. A tied leaf is stored once. Structure and static fields are not stored: `load` takes them from
            the tree that it is given.
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
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)
        permissions = temporary.stat().st_mode
        # None, since an empty dict makes a file that cannot be read if there are no tensors either.
        save_file(tensors, temporary, metadata=dict(metadata) if metadata else None)
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
        CheckpointError: there is no such file, or it is no safetensors file, or it lacks leaves, has others, or has
            leaves of other shapes or dtypes. All of them are listed in one error.
    """
    values, structure = flatten(like)
    wanted = {leaf.path or "leaf": value for leaf, value in zip(structure.leaves, values, strict=True)}
    stored = _read("load", path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    problems = [f"missing: {name}" for name in wanted if name not in stored]
    problems += [f"unexpected: {name} {short(value)}" for name, value in stored.items() if name not in wanted]
    for name, value in wanted.items():
        found = stored.get(name)
        if not isinstance(value, Tensor):
            problems.append(f"no tensor in the tree: {name} is {value!r}")
        elif found is not None and (found.shape, found.dtype) != (value.shape, value.dtype):
            problems.append(f"different: {name} is {short(found)} in the file, {short(value)} in the tree")
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
    return _read("metadata", path, lambda file: dict(file.metadata() or {}))


def _read(verb: str, path: str | os.PathLike[str], read: Callable[[Any], R]) -> R:
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise CheckpointError(f"{verb}: there is no file {name}.")
    try:
        with safe_open(name, framework="pt") as file:
            return read(file)
    except SafetensorError as error:
        raise CheckpointError(f"{verb}: {name} cannot be read as a safetensors file: {error}.") from error
