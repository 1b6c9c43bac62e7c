"""Reading safetensors files, one or many with an index.

The tensors are memory-mapped: their data are read from the disk when they are first used. Files of `pn.save` have
checksums, for which what is asked for is read at once.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from purenn.errors import CheckpointError
from purenn.tree._checks import a_or_an
from purenn.tree._checksum import checksum, checksum_of_text, word_weights
from purenn.tree._shards import FILES, INDEX, SUFFIX, index_of, is_sealed
from purenn.tree._written import CHECKSUM, CHECKSUMS, FORMAT, VERSION

R = TypeVar("R")
#: What begins like this in a file's text is not the user's.
OWN = "purenn."
_LARGEST_INDEX = 100_000_000


class Stored(NamedTuple):
    """What a file holds, or the files of an index hold.

    Attributes:
        path: the file or the index.
        text: the text beside the tensors.
        files: the file of each tensor.
        checksums: the checksum that each file must have, by its name; empty if there is no index that knows them.
    """

    path: Path
    text: dict[str, str]
    files: dict[str, Path]
    checksums: dict[str, str]


def stored(verb: str, path: str | os.PathLike[str]) -> Stored:
    """What there is to read in a place.

    Args:
        verb: the function to name in errors.
        path: a safetensors file, one that `pn.save` has divided, an index (``*.safetensors.index.json``, as Hugging
            Face writes it), or a folder with one or the other.

    Raises:
        CheckpointError: there is nothing to read, or several things, or what is there is damaged, or an index names
            files outside of its own folder.
    """
    place = _place(verb, Path(path))
    if place.name.endswith(".json"):
        return _stored_by_index(verb, place)
    names, text = _read(verb, place, lambda file: (list(file.keys()), _text_of(verb, place, file)))
    return Stored(place, text, dict.fromkeys(names, place), {})


def tensors_of(
    verb: str, source: Stored | str | os.PathLike[str], names: Collection[str] | None = None, *, verify: bool = True
) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        verb: the function to name in errors.
        source: what `stored` has found, or where to look.
        names: the tensors to read, of those that are there. Default: all.
        verify: whether to compare them with their checksums, if there are any, which reads all their data.

    Raises:
        CheckpointError: as of `stored`; and a file is missing, is damaged, or is not what the index says.
    """
    found = source if isinstance(source, Stored) else stored(verb, source)
    weights = word_weights() if verify else None
    shards: dict[Path, list[str]] = {}
    for name, file in found.files.items():
        if names is None or name in names:
            shards.setdefault(file, []).append(name)
    return {
        name: tensor
        for path, there in shards.items()
        for name, tensor in _tensors_of_file(verb, found, path, there, weights).items()
    }


def _place(verb: str, path: Path) -> Path:
    if path.is_dir():
        return _only_one(verb, path)
    if path.is_file():
        return path
    index = index_of(path)
    if path.name.endswith(SUFFIX) and index.is_file():
        return index
    raise CheckpointError(f"{verb}: there is no file {path}.")


def _only_one(verb: str, folder: Path) -> Path:
    names = sorted(os.listdir(folder))
    divided = [name for name in names if name.endswith(INDEX)]
    found = divided or [name for name in names if name.endswith(SUFFIX)]
    if len(found) != 1:
        there = ", ".join(found) if found else "neither a *.safetensors file nor an index of some"
        raise CheckpointError(f"{verb}: {folder} has {there}: give the path of the file to read.")
    # A file of the whole comes before its index, as where its path is given.
    whole = found[0].removesuffix(INDEX) + SUFFIX
    return folder / (whole if divided and whole in names else found[0])


def _read(verb: str, path: Path, f: Callable[[Any], R]) -> R:
    """``f(file)`` of an open safetensors file."""
    if not path.is_file():
        raise CheckpointError(f"{verb}: there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            # The last of two entries for one name would count, for some readers the first.
            with open(path, "rb") as same:
                parsed(verb, path, same.read(int.from_bytes(same.read(8), "little")))
            return f(file)
    except SafetensorError as error:
        raise CheckpointError(f"{verb}: {path} cannot be read as a safetensors file: {error}.") from error


def _text_of(verb: str, path: Path, file: Any) -> dict[str, str]:
    """The text of an open file, which has its checksum if it should have one."""
    text = dict(file.metadata() or {})
    if any(key.startswith(OWN) for key in text):
        content = {key: value for key, value in text.items() if key != CHECKSUM}
        _require_known(verb, path, text)
        _require(text.get(CHECKSUM) == checksum_of_text(content), verb, path)
    return text


def _tensors_of_file(
    verb: str, source: Stored, path: Path, names: list[str], weights: Tensor | None
) -> dict[str, Tensor]:
    def tensors(file: Any) -> dict[str, Tensor]:
        there = list(file.keys())
        missing = sorted(set(names) - set(there))
        if missing:
            raise CheckpointError(f"{verb}: {path} lacks tensors that the index says are there: {', '.join(missing)}.")
        for name in there:
            if source.files.get(name, path) != path:
                raise CheckpointError(
                    f"{verb}: {path} has the tensor {name}, which the index says is in {source.files[name].name}."
                )
        text = _text_of(verb, path, file)
        if source.checksums.get(path.name, text.get(CHECKSUM)) != text.get(CHECKSUM):
            raise CheckpointError(f"{verb}: {path} is not the file that was saved with {source.path}.")
        found = {name: file.get_tensor(name) for name in names}
        if CHECKSUM in text and weights is not None:
            sums = parsed(verb, path, text.get(CHECKSUMS, "null"))
            _require(isinstance(sums, dict) and sums.keys() == set(there), verb, path)
            _require(all(sums[name] == checksum(tensor, weights) for name, tensor in found.items()), verb, path)
        return found

    return _read(verb, path, tensors)


def _stored_by_index(verb: str, index: Path) -> Stored:
    if index.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError(f"{verb}: {index} is no index: it is larger than {_LARGEST_INDEX // 1_000_000} MB.")
    content = parsed(verb, index, index.read_bytes())
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{verb}: {index} is no index: it needs a 'weight_map' of tensor names to file names.")
    given = content.get("metadata", {})
    if not isinstance(given, dict):
        raise CheckpointError(f"{verb}: {index} is no index: its 'metadata' is {a_or_an(given)}, no text by name.")
    for file in dict.fromkeys(weight_map.values()):
        _require_plain_name(verb, index, file)
    text = {key: str(value) for key, value in given.items() if isinstance(value, (str, int, float))}
    sums = {}
    if any(key.startswith(OWN) for key in text):
        _require_known(verb, index, text)
        _require(is_sealed(text, weight_map), verb, index)
        sums = parsed(verb, index, text.get(FILES, "null"))
        _require(isinstance(sums, dict) and sums.keys() == set(weight_map.values()), verb, index)
    return Stored(index, text, {name: index.parent / file for name, file in weight_map.items()}, sums)


def _require(holds: bool, verb: str, path: Path) -> None:
    if not holds:
        raise CheckpointError(f"{verb}: {path} is damaged: its contents do not have its checksum.")


def _require_known(verb: str, path: Path, text: Mapping[str, str]) -> None:
    if text.get(FORMAT, VERSION) != VERSION:
        raise CheckpointError(
            f"{verb}: {path} has the format {text[FORMAT]}, this version of purenn knows {VERSION}: install "
            f"the one that has saved it."
        )


def _require_plain_name(verb: str, index: Path, file: str) -> None:
    # Links are followed, as download caches use them; names that lead elsewhere come from an attacker.
    if not file.endswith(SUFFIX) or any(character in file for character in "/\\:\0"):
        raise CheckpointError(
            f"{verb}: {index} names the file {file!r}: only names of *.safetensors files beside the index are read."
        )


def parsed(verb: str, path: Path, text: str | bytes) -> Any:
    """Text of a file as JSON, in which no name stands twice.

    Raises:
        CheckpointError: it is no such text.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise CheckpointError(f"{verb}: {path} is damaged: {name!r} stands in it twice.")
        return found

    try:
        # A hostile file can be nested deeper than the parser goes.
        return json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{verb}: {path} cannot be read as JSON: {error}.") from error
