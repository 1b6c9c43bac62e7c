"""Reading safetensors files, one or many with an index, and what speaks against putting their tensors into a tree.

The tensors are memory-mapped: their data are read from the disk when they are first used.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from purenn.errors import CheckpointError
from purenn.tree._checksum import checksum
from purenn.tree._walk import short

R = TypeVar("R")
INDEX = ".safetensors.index.json"
# What stands in the header of a file with a checksum. There are two keys, so that damage to one is not taken for a file
# without a checksum.
CHECKSUM, FORMAT = "purenn.checksum", "purenn.format"


def read(verb: str, path: str | os.PathLike[str], f: Callable[[Any], R]) -> R:
    """``f(file)`` of an open safetensors file.

    Args:
        verb: the function to name in errors.
        path: the file.
        f: what to do with it.

    Raises:
        CheckpointError: there is no such file, or it is no safetensors file.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise CheckpointError(f"{verb}: there is no file {name}.")
    try:
        with safe_open(name, framework="pt") as file:
            return f(file)
    except SafetensorError as error:
        raise CheckpointError(f"{verb}: {name} cannot be read as a safetensors file: {error}.") from error


def tensors_of_file(verb: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name; arguments and errors as of `read`.

    Raises:
        CheckpointError: besides, the file has a checksum, as `pn.save` writes it, and other contents.
    """

    def everything(file: Any) -> dict[str, Tensor]:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = file.metadata() or {}
        if (CHECKSUM in text or FORMAT in text) and text.get(CHECKSUM) != checksum(tensors):
            raise CheckpointError(f"{verb}: {os.fspath(path)} is damaged: its contents do not have its checksum.")
        return tensors

    return read(verb, path, everything)


def tensors_of(verb: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a file, of the files that an index lists, or of a folder with one or the other.

    Args:
        verb: the function to name in errors.
        path: a safetensors file, an index (``*.safetensors.index.json``, as Hugging Face writes it) or a folder.

    Raises:
        CheckpointError: there is nothing to read, or several things, or what is there is damaged, or an index names
            files outside of its own folder.
    """
    place = Path(path)
    if place.is_dir():
        place = _only_one(verb, place)
    return _tensors_of_index(verb, place) if place.name.endswith(".json") else tensors_of_file(verb, place)


def _only_one(verb: str, folder: Path) -> Path:
    names = sorted(os.listdir(folder))
    found = [name for name in names if name.endswith(INDEX)] or [n for n in names if n.endswith(".safetensors")]
    if len(found) != 1:
        there = ", ".join(found) if found else "neither a *.safetensors file nor an index of some"
        raise CheckpointError(f"{verb}: {folder} has {there}: give the path of the file to read.")
    return folder / found[0]


def _tensors_of_index(verb: str, index: Path) -> dict[str, Tensor]:
    if not index.is_file():
        raise CheckpointError(f"{verb}: there is no file {index}.")
    try:
        # A hostile file can be nested deeper than the parser goes.
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{verb}: {index} cannot be read as JSON: {error}.") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{verb}: {index} is no index: it needs a 'weight_map' of tensor names to file names.")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        shards.setdefault(file, []).append(name)
    for file in shards:
        _require_plain_name(verb, index, file)
    return {
        name: tensor
        for file, names in shards.items()
        for name, tensor in _some_of_file(verb, index.parent / file, names).items()
    }


def _require_plain_name(verb: str, index: Path, file: str) -> None:
    # Links are followed, as download caches use them; names that lead elsewhere come from an attacker.
    if not file.endswith(".safetensors") or any(character in file for character in "/\\:\0"):
        raise CheckpointError(
            f"{verb}: {index} names the file {file!r}: only names of *.safetensors files beside the index are read."
        )


def _some_of_file(verb: str, path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    def some(file: Any) -> dict[str, Tensor]:
        there = set(file.keys())
        missing = [name for name in names if name not in there]
        if missing:
            raise CheckpointError(f"{verb}: {path} lacks tensors that the index says are there: {', '.join(missing)}.")
        return {name: file.get_tensor(name) for name in names}

    return read(verb, path, some)


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
