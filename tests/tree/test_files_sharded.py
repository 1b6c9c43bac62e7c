"""One save in several files with an index: names, what a kill leaves behind, and indices that lie."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import make_chain, make_tied
from safetensors.torch import load_file, save_file

import bridge
import purenn as pn
from purenn.errors import ArgumentError, CheckpointError

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / WHOLE


def tree(value: float, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Of 40, 40, 24 and 8 bytes."""
    sizes = {"a": 10, "b": 10, "c": 6, "d": 2}
    return {name: torch.full((size,), float(value), device=device) for name, size in sizes.items()}


def names(file: Path) -> list[str]:
    return sorted(os.listdir(file.parent))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------------------------------------------- round trips


def test_shards_and_index(file: Path, device: torch.device) -> None:
    """Tensors in their order, no more bytes in a file than asked for, with names and index as Hugging Face has them."""
    pn.save(file, tree(1.5, device), metadata={"epoch": "3"}, max_shard_size=40)
    assert names(file) == [*SHARDS, INDEX]
    assert [list(load_file(file.with_name(name))) for name in SHARDS] == [["a"], ["b"], ["c", "d"]]
    index = json.loads(file.with_name(INDEX).read_text())
    assert index["weight_map"] == {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[2], "d": SHARDS[2]}
    assert index["metadata"]["total_size"] == 112
    assert pn.tree.metadata(file) == {"epoch": "3"}
    for place in (file, file.with_name(INDEX), file.parent, str(file)):
        assert pn.tree.equal(pn.load(place, like=tree(0, device)), tree(1.5, device))
        assert pn.tree.equal(bridge.load_state_dict(tree(0, device), place), tree(1.5, device))


def test_a_model(file: Path, device: torch.device) -> None:
    """A model with ties comes back bit for bit, onto meta too; a tensor larger than a file has one of its own."""
    for p in (make_chain(device=device), make_tied(device=device)):
        pn.save(file, p, max_shard_size=1)
        assert len(names(file)) == 1 + len(pn.tree.leaves(p))
        assert pn.tree.equal(pn.load(file, like=pn.tree.map(torch.zeros_like, p)), p)
        assert pn.tree.equal(pn.load(file, like=pn.tree.to(p, "meta")), pn.tree.to(p, "cpu"))


def test_small_trees_have_one_file(file: Path) -> None:
    """Up to the size, and for a tree of one leaf or none, there is one file and no index."""
    for small in (tree(1), torch.ones(100), {}):
        pn.save(file, small, max_shard_size=112)
        assert names(file) == [WHOLE]


def test_only_the_files_that_are_asked_for_are_needed(file: Path) -> None:
    """Where some leaves are loaded, files without any of them are not opened."""
    pn.save(file, tree(1), max_shard_size=40)
    file.with_name(SHARDS[0]).unlink()
    some = pn.load(file, like=tree(0), paths=("b", "d"))
    assert {name: leaf[0].item() for name, leaf in some.items()} == {"a": 0, "b": 1, "c": 0, "d": 1}


# ---------------------------------------------------------------------------------------------------- one after another


@pytest.mark.parametrize("sizes", [(40, 40), (40, 100), (40, 1000), (1000, 40), (1, 40, 1000, 40, 40)])
def test_one_save_replaces_another(file: Path, sizes: tuple[int, ...]) -> None:
    """Whatever was there before, one file or several, is gone after a save; other files stay."""
    other = {"model-x.safetensors", "model-1-of-2.safetensors", "xmodel-00001-of-00002.safetensors", "other"}
    for name in other:
        file.with_name(name).touch()
    for value, size in enumerate(sizes):
        pn.save(file, tree(value), max_shard_size=size)
        assert pn.tree.equal(pn.load(file, like=tree(-1)), tree(value))
        expected = {40: 4, 100: 3, 1: 5, 1000: 1}[size]
        assert len(set(names(file)) - other) == expected
    assert other <= set(names(file))


class Killed(BaseException):
    """No handler may catch it."""


@pytest.mark.parametrize(("before", "after"), [(1000, 1000), (1000, 40), (40, 1000), (40, 40), (40, 100)])
def test_killed_at_every_step(file: Path, before: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a save ends at any of its steps and nothing is cleaned up, the earlier one or the new one is there, whole."""
    found = []
    for steps in range(100):
        pn.save(file, tree(1), max_shard_size=before)
        left = steps

        def step(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return call(*args, **kwargs)

            return counted

        with monkeypatch.context() as patched:
            for owner, name in ((os, "fsync"), (os, "replace"), (os, "open"), (Path, "unlink")):
                patched.setattr(owner, name, step(getattr(owner, name)))
            try:
                pn.save(file, tree(2), max_shard_size=after)
            except Killed:
                pass
            else:
                break
        loaded = pn.load(file, like=tree(0))
        found.append(int(loaded["a"][0]))
        assert pn.tree.equal(loaded, tree(found[-1]))
        # The next save goes well, and nothing but what a kill in the middle of a file leaves is left.
        pn.save(file, tree(3), max_shard_size=after)
        assert pn.tree.equal(pn.load(file, like=tree(0)), tree(3))
        kept = [name for name in names(file) if not name.startswith(".")]
        assert len(kept) == {1000: 1, 40: 4, 100: 3}[after]
    assert found == sorted(found)
    assert set(found) == {1, 2}


def test_a_failure_cleans_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a file cannot be written, those of the same save are removed, and the earlier save is what it was."""
    pn.save(file, tree(1), max_shard_size=40)
    before = {name: file.with_name(name).read_bytes() for name in names(file)}
    calls = []

    def fail(number: int) -> None:
        calls.append(number)
        if len(calls) == 3:
            raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        pn.save(file, tree(2), max_shard_size=40)
    assert {name: file.with_name(name).read_bytes() for name in names(file)} == before


def test_misuse(file: Path) -> None:
    """A size below one byte, and several files without a name for them, are refused before anything is written."""
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: pn.save(file, tree(1), max_shard_size=0),
            ArgumentError,
            "save: max_shard_size must be at least 1, got 0.",
        ),
        (
            lambda: pn.save(file.with_name("model"), tree(1), max_shard_size=40),
            CheckpointError,
            f"save: {file.with_name('model')} takes 3 files, so its name must end in .safetensors.",
        ),
        (
            lambda: pn.save(file, tree(1), metadata={"total_size": "3"}, max_shard_size=40),
            CheckpointError,
            "save: 'total_size' is a name that files need themselves: give the metadata another one.",
        ),
    ]
    for act, kind, message in cases:
        with pytest.raises(kind) as error:
            act()
        assert str(error.value) == message
    assert names(file) == []


# ---------------------------------------------------------------------------------------------------- indices that lie


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        pn.load(file, like=tree(0))
    return str(error.value)


def test_sealed_indices(file: Path) -> None:
    """Any change of an index of ours is found; so are shards of another save, and missing ones."""
    index, first = file.with_name(INDEX), file.with_name(SHARDS[0])
    damaged = f"load: {index} is damaged: its contents do not have its checksum."

    pn.save(file, tree(1), max_shard_size=40)
    whole = index.read_text()

    def changed(change: Callable[[Any], Any]) -> str:
        index.write_text(whole)
        edit(index, change)
        return refused(file)

    assert changed(lambda content: content["weight_map"].update(a=SHARDS[1])) == damaged
    assert changed(lambda content: content["weight_map"].pop("a")) == damaged
    assert changed(lambda content: content["metadata"].update(total_size=7)) == damaged
    assert changed(lambda content: content["metadata"].pop("purenn.files")) == damaged
    assert changed(lambda content: content["metadata"].pop("purenn.checksum")) == damaged
    index.write_text(whole)
    pn.save(file.with_name("other.safetensors"), tree(2), max_shard_size=40)
    first.write_bytes(file.with_name(SHARDS[0].replace("model", "other")).read_bytes())
    assert refused(file) == f"load: {first} is not the file that was saved with {index}."
    first.unlink()
    assert refused(file) == f"load: there is no file {first}."


def test_links_lead_to_what_was_saved(file: Path, tmp_path: Path) -> None:
    """A link in the place of a file is followed, but only to the file that was saved."""
    pn.save(file, tree(1), max_shard_size=40)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    first, moved = file.with_name(SHARDS[0]), elsewhere / "blob"
    first.rename(moved)
    first.symlink_to(moved)
    assert pn.tree.equal(pn.load(file, like=tree(0)), tree(1))
    pn.save(moved, {"a": tree(2)["a"]})
    assert refused(file) == f"load: {first} is not the file that was saved with {file.with_name(INDEX)}."


ELSEWHERE = "only names of *.safetensors files beside the index are read."
NO_MAP = "is no index: it needs a 'weight_map' of tensor names to file names."
FORMAT_9 = "has the format 9, this version of purenn knows 2: install the one that has saved it."
INDICES = [
    ('{"weight_map": {"a": "../x.safetensors"}}', f"names the file '../x.safetensors': {ELSEWHERE}"),
    ('{"weight_map": {"a": "/x.safetensors"}}', f"names the file '/x.safetensors': {ELSEWHERE}"),
    ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "is damaged: 'a' stands in it twice."),
    ('{"weight_map": {}, "weight_map": {}}', "is damaged: 'weight_map' stands in it twice."),
    ('{"metadata": [], "weight_map": {}}', "is no index: its 'metadata' is a list, no text by name."),
    ('{"metadata": {"purenn.format": "9"}, "weight_map": {}}', FORMAT_9),
    ('{"metadata": {}}', NO_MAP),
    ('{"weight_map": {"a": ["x.safetensors"]}}', NO_MAP),
]


@pytest.mark.parametrize(("content", "message"), INDICES)
def test_hostile_indices(file: Path, content: str, message: str) -> None:
    """Names that lead elsewhere, names that stand twice, and values of wrong types are refused."""
    index = file.with_name(INDEX)
    index.write_text(content)
    assert refused(file) == f"load: {index} {message}"


def test_indices_and_files_that_disagree(file: Path) -> None:
    """What an index says must be in its files: each tensor in one, and in the one that it names."""
    index, (one, other, _) = file.with_name(INDEX), SHARDS
    a, b = torch.ones(10), torch.zeros(10)
    save_file({"a": a, "b": b}, file.with_name(one))
    save_file({"b": b, "unlisted": a}, file.with_name(other))
    index.write_text(json.dumps({"weight_map": {"a": one, "b": other}}))
    assert refused(file) == (f"load: {file.with_name(one)} has the tensor b, which the index says is in {other}.")
    save_file({"a": a}, file.with_name(one))
    loaded = pn.load(file, like={"a": b, "b": a})
    assert pn.tree.equal(loaded, {"a": a, "b": b})
    index.write_text(json.dumps({"metadata": {"total_size": [1], "n": 3}, "weight_map": {"a": other, "b": other}}))
    assert refused(file) == (f"load: {file.with_name(other)} lacks tensors that the index says are there: a.")
    assert pn.tree.metadata(file) == {"n": "3"}


def test_an_enormous_index(file: Path) -> None:
    """More than 100 MB are not read as an index."""
    index = file.with_name(INDEX)
    with open(index, "wb") as sparse:
        sparse.truncate(100_000_001)
    assert refused(file) == f"load: {index} is no index: it is larger than 100 MB."
