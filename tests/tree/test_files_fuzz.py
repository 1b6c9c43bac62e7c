"""Damaged files: whatever has happened to one, or to an index, `load` raises our error or returns what was saved."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies

import purenn as pn
from purenn.errors import CheckpointError
from purenn.layers import BatchNorm1d, Linear


def saved(device: torch.device) -> dict:
    """Several dtypes, sizes that are no multiple of a word, equal shapes, and an empty tensor."""
    return {
        "linear": Linear.init(pn.random.key(0, device), 5, 3),
        "norm": BatchNorm1d.init(3, device=device),
        "half": torch.arange(7, device=device).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True], device=device),
        "empty": torch.zeros(0, 2, device=device),
    }


def overwrite(data: bytearray, draw: random.Random) -> None:
    place, n = draw.randrange(len(data)), draw.choice([1, 1, 2, 8, 40])
    data[place : place + n] = draw.randbytes(len(data[place : place + n]))


def flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def remove(data: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(data))
    del data[place : place + draw.choice([1, 8, 30])]


def insert(data: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(data) + 1)
    data[place:place] = draw.randbytes(draw.choice([1, 8, 30]))


def swap(data: bytearray, draw: random.Random) -> None:
    one, other = draw.randrange(len(data) - 16), draw.randrange(len(data) - 16)
    n = draw.choice([1, 4, 8, 12])
    data[one : one + n], data[other : other + n] = data[other : other + n], data[one : one + n]


def length(data: bytearray, draw: random.Random) -> None:
    value = draw.choice([0, 1, 2, len(data), 2**31, 2**63, 2**64 - 1, draw.randrange(2 * len(data))])
    data[:8] = struct.pack("<Q", value)


def header(data: bytearray, draw: random.Random) -> None:
    """Changes that leave the header readable: other offsets, dtypes, shapes, names."""
    size = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + size])
    name = draw.choice([name for name in entries if name != "__metadata__"])
    other = draw.choice([name for name in entries if name != "__metadata__"])
    what = draw.choice(["offsets", "swap", "dtype", "shape", "name", "drop", "deep"])
    if what == "offsets":
        entries[name]["data_offsets"] = [draw.choice([-1, 0, 4, 2**40, 2**64]) for _ in range(2)]
    elif what == "swap":
        entries[name], entries[other] = entries[other], entries[name]
    elif what == "dtype":
        entries[name]["dtype"] = draw.choice(["F32", "I32", "F64", "Q7", "", None, 3])
    elif what == "shape":
        entries[name]["shape"] = draw.choice([[], [-1], [2**63, 2], [1.5], "3", None, entries[other]["shape"]])
    elif what == "name":
        entries[draw.choice(["../../x", "", "\0", "linear.weight.weight"])] = entries.pop(name)
    elif what == "drop":
        del entries[name]
    else:
        entries[name] = json.loads("[" * 200 + "]" * 200)
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    data[: 8 + size] = struct.pack("<Q", len(text)) + text


def index(data: bytearray, draw: random.Random) -> None:
    """Changes that leave an index readable: other names, files and texts."""
    content = json.loads(data)
    weight_map, text = content["weight_map"], content["metadata"]
    name, other = draw.sample(sorted(weight_map), 2)
    what = draw.choice(["swap", "file", "name", "drop", "text", "move", "no text", "twice"])
    if what == "swap":
        weight_map[name], weight_map[other] = weight_map[other], weight_map[name]
    elif what == "file":
        weight_map[name] = draw.choice(["../x.safetensors", "/etc/passwd", "", "\0", "x.safetensors", 3, None, [name]])
    elif what == "name":
        weight_map[draw.choice(["../../x", "", "\0", other])] = weight_map.pop(name)
    elif what == "drop":
        del weight_map[name]
    elif what == "text":
        text[draw.choice(sorted(text))] = draw.choice(["", "3", "{}", "[]", "null", 3, None, {}, [], "[" * 5000])
    elif what == "move":
        content[draw.choice(["metadata", "weight_map"])] = draw.choice([{}, [], None, 3, "x", weight_map, text])
    elif what == "no text":
        del content["metadata"]
        weight_map[name] = weight_map[other]
    data[:] = json.dumps(content).encode()
    if what == "twice":
        data[:] = bytes(data).replace(b'"weight_map": {', f'"weight_map": {{"{name}": "{weight_map[other]}", '.encode())


def outcomes(whole: Path, damaged: Path, tree: dict, damage: Callable[[bytearray, random.Random], None]) -> float:
    """Damage a file four hundred times, or in all ways there are; the share of times that the tree is refused."""
    content = damaged.read_bytes()
    tried = refused = 0

    @settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(draw=strategies.randoms(use_true_random=False))
    def is_refused_or_whole(draw: random.Random) -> None:
        nonlocal tried, refused
        tried += 1
        data = bytearray(content)
        damage(data, draw)
        damaged.write_bytes(data)
        try:
            assert pn.tree.equal(pn.load(whole, like=tree), tree)
        except CheckpointError:
            refused += 1

    is_refused_or_whole()
    damaged.write_bytes(content)
    assert pn.tree.equal(pn.load(whole, like=tree), tree)
    return refused / tried


ANYWHERE = [overwrite, flip, cut, remove, insert, swap]


@pytest.mark.parametrize("damage", [*ANYWHERE, length, header])
def test_damage_is_found(tmp_path: Path, device: torch.device, damage) -> None:
    """Four hundred damages of each kind to a file: an error of ours, or the very tree that was saved."""
    tree, path = saved(device), tmp_path / "file.safetensors"
    pn.save(path, tree, metadata={"epoch": "3"})
    assert outcomes(path, path, tree, damage) > 0.5


@pytest.mark.parametrize("damage", [*ANYWHERE, index])
def test_damage_to_an_index_is_found(tmp_path: Path, device: torch.device, damage) -> None:
    """As many to the index of several files."""
    tree, path = saved(device), tmp_path / "file.safetensors"
    pn.save(path, tree, metadata={"epoch": "3"}, max_shard_size=30)
    assert outcomes(path, tmp_path / "file.safetensors.index.json", tree, damage) > 0.5


@pytest.mark.parametrize("damage", [flip, swap, header])
def test_damage_to_one_of_several_files_is_found(tmp_path: Path, device: torch.device, damage) -> None:
    """As many to one of several files."""
    tree, path = saved(device), tmp_path / "file.safetensors"
    pn.save(path, tree, metadata={"epoch": "3"}, max_shard_size=30)
    shard = next(file for file in sorted(tmp_path.iterdir()) if b"linear.bias" in file.read_bytes())
    assert outcomes(path, shard, tree, damage) > 0.5


def test_checksum(tmp_path: Path, device: torch.device) -> None:
    """A byte of a tensor that has changed is told as damage; files without a checksum are read as they are."""
    path = tmp_path / "file.safetensors"
    tree = saved(device)
    pn.save(path, tree, metadata={"epoch": "3"})
    assert pn.tree.metadata(path) == {"epoch": "3"}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        pn.load(path, like=tree)
    assert str(caught.value) == f"load: {path} is damaged: its contents do not have its checksum."
    path.write_bytes(bytes(data).replace(b"purenn.", b"another"))
    assert not pn.tree.equal(pn.load(path, like=tree), tree)
