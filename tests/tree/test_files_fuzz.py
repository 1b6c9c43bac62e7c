"""Damaged files: whatever has happened to one, `load` raises our error or returns what was saved."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("damage", [overwrite, flip, cut, remove, insert, swap, length, header])
def test_damage_is_found(tmp_path: Path, device: torch.device, damage) -> None:
    """Four hundred damages of each kind: an error of ours, or the very tree that was saved."""
    tree = saved(device)
    path, damaged = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    pn.save(path, tree, metadata={"epoch": "3"})
    whole = path.read_bytes()
    draw = random.Random(damage.__name__)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        damage(data, draw)
        damaged.write_bytes(data)
        try:
            assert pn.tree.equal(pn.load(damaged, like=tree), tree)
        except CheckpointError:
            refused += 1
    assert refused > 200


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
