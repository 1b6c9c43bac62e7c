"""One save in several files: numbered safetensors files, and an index that says which of them holds what.

Names and index are those of Hugging Face. The index is put in place last, and no file that an earlier index names is
written to, so a process that is killed in between leaves the earlier save as it was.
"""

import json
import os
import re
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from purenn.tree._checksum import checksum_of_text
from purenn.tree._written import CHECKSUM, beside, flush, sealed, write

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
#: Where the index keeps the checksums of its files, and how many bytes all tensors have.
FILES, TOTAL_SIZE = "purenn.files", "total_size"


def split(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """Tensors in parts of at most so many bytes, in their order; one that is larger is a part of its own."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


def index_of(path: Path) -> Path:
    """The index of a save in several files."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}{INDEX}")


def write_shards(path: Path, parts: list[dict[str, Tensor]], text: Mapping[str, str]) -> None:
    """Write each part to a file, then the index with the text, then remove what was there before."""
    names = _new_names(path, len(parts))
    try:
        pairs = list(zip(names, parts, strict=True))
        sums = {name: write(path.with_name(name), part, {}) for name, part in pairs}
        weight_map = {tensor: name for name, part in pairs for tensor in part}
        total = sum(tensor.nbytes for part in parts for tensor in part.values())
        found = sealed_index({**text, FILES: json.dumps(sums)}, total, weight_map)
        content = json.dumps({"metadata": found, "weight_map": weight_map}, ensure_ascii=False, indent=2).encode()
    except BaseException:
        for name in names:
            path.with_name(name).unlink(missing_ok=True)
        raise
    flush(path.parent)
    with beside(index_of(path)) as temporary, open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # A file of the whole is read before an index.
    if path.exists():
        path.unlink()
        flush(path.parent)
    _remove_shards(path, names)


def sealed_index(text: Mapping[str, str], total: int, weight_map: Mapping[str, str]) -> dict[str, str | int]:
    """What an index says besides the map, with a checksum of both."""
    whole = {TOTAL_SIZE: str(total), "weight_map": json.dumps(weight_map), **text}
    found = sealed(whole)
    del found["weight_map"]
    return {**found, TOTAL_SIZE: total}


def is_sealed(text: Mapping[str, str], weight_map: Mapping[str, str]) -> bool:
    """Whether the texts of an index, the total size among them, and its map have their checksum."""
    whole = {**text, "weight_map": json.dumps(weight_map)}
    return checksum_of_text({key: value for key, value in whole.items() if key != CHECKSUM}) == text.get(CHECKSUM)


def remove(path: Path) -> None:
    """Remove a save and all that is left of earlier ones: at no moment a wrong one can be read."""
    index_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    _remove_shards(path, ())


def remove_index(path: Path) -> None:
    """Remove the several files whose place one file has taken."""
    if path.name.endswith(SUFFIX):
        index_of(path).unlink(missing_ok=True)
        _remove_shards(path, ())


def shard_pattern(stem: str) -> re.Pattern[str]:
    """What the names of numbered files look like; `stem` is a pattern itself."""
    return re.compile(rf"{stem}(?:-[0-9a-f]{{8}})?-\d{{5,}}-of-\d{{5,}}{re.escape(SUFFIX)}")


def _shards_of(path: Path) -> list[Path]:
    pattern = shard_pattern(re.escape(path.name.removesuffix(SUFFIX)))
    return [path.with_name(name) for name in os.listdir(path.parent) if pattern.fullmatch(name)]


def _remove_shards(path: Path, kept: Collection[str]) -> None:
    for file in _shards_of(path):
        if file.name not in kept:
            file.unlink()


def _new_names(path: Path, count: int) -> list[str]:
    # If there are such files already, an earlier save may still need them.
    stem = path.name.removesuffix(SUFFIX) + (f"-{secrets.token_hex(4)}" if _shards_of(path) else "")
    return [f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1)]
