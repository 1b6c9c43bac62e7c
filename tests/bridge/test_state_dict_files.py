"""`bridge.load_state_dict` from safetensors files and from folders with an index."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import bridge
import purenn as pn
from purenn.errors import CheckpointError
from purenn.layers import Linear

INDEX = "model.safetensors.index.json"


@pytest.fixture
def p() -> Linear:
    return Linear.init(pn.random.key(0), 3, 2)


def write_index(folder: Path, weight_map: Any, name: str = INDEX) -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
    return path


def write_shards(folder: Path, p: Linear) -> Path:
    """A model in two files with an index, as Hugging Face writes it."""
    assert p.bias is not None
    save_file({"model.weight": p.weight}, folder / "model-00001-of-00002.safetensors")
    save_file({"model.bias": p.bias, "unlisted": p.bias.clone()}, folder / "model-00002-of-00002.safetensors")
    weight_map = {f"model.{name}": f"model-0000{n}-of-00002.safetensors" for n, name in ((1, "weight"), (2, "bias"))}
    return write_index(folder, weight_map)


def error_of(p: Any, path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        bridge.load_state_dict(p, path)
    return str(error.value)


def test_one_file(p: Linear, tmp_path: Path) -> None:
    """A file, given as such or as the only one of a folder, fills a container on the meta device."""
    save_file(bridge.state_dict(p), tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text("{}")
    meta = pn.tree.to(p, "meta")
    assert pn.tree.equal(bridge.load_state_dict(meta, tmp_path / "weights.safetensors"), p)
    assert pn.tree.equal(bridge.load_state_dict(meta, str(tmp_path)), p)


def test_sharded_folder(p: Linear, tmp_path: Path) -> None:
    """The files of an index are read together, whether the folder is given or the index."""
    index = write_shards(tmp_path, p)
    meta = pn.tree.to(p, "meta")
    for place in (tmp_path, index):
        assert pn.tree.equal(bridge.load_state_dict(meta, place, rename={"model": ""}), p)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory use from /proc")
def test_nothing_is_read_until_it_is_used(tmp_path: Path) -> None:
    """Filling a container from a file of 64 MiB takes no memory of that size."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

    save_file({"weight": torch.ones(4096, 4096)}, tmp_path / "large.safetensors")
    meta = Linear(torch.empty(4096, 4096, device="meta"), None)
    before = resident()
    p = bridge.load_state_dict(meta, tmp_path)
    assert resident() - before < 16
    assert p.weight[17, 5] == 1


def test_links_are_followed(p: Linear, tmp_path: Path) -> None:
    """Download caches keep links to files that lie elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    index = write_shards(blobs, p)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    loaded = bridge.load_state_dict(p, snapshot / index.name, rename={"model": ""})
    assert pn.tree.equal(loaded, p)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..", "C:\\x.safetensors", "a.bin"]
)
def test_an_index_cannot_lead_elsewhere(name: str, p: Linear, tmp_path: Path) -> None:
    """An index may name safetensors files of its own folder only, even if others are there."""
    save_file(bridge.state_dict(p), tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = write_index(folder, {"weight": name})
    assert error_of(p, folder) == (
        f"load_state_dict: {index} names the file {name!r}: only names of *.safetensors files beside the index are "
        f"read."
    )


def test_damaged_indices(p: Linear, tmp_path: Path) -> None:
    """An index that is no JSON, is nested too deep, has no map, or a map of something else is refused."""
    index = tmp_path / INDEX
    for content in ("{", "[" * 100_000, "\x00"):
        index.write_text(content)
        message = error_of(p, index)
        assert message.startswith(f"load_state_dict: {index} cannot be read as JSON: ")
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"weight": 3}}'):
        index.write_text(content)
        assert error_of(p, index) == (
            f"load_state_dict: {index} is no index: it needs a 'weight_map' of tensor names to file names."
        )


def test_what_an_index_names_must_be_there(p: Linear, tmp_path: Path) -> None:
    """Files and tensors that are missing are named."""
    index = write_index(tmp_path, {"weight": "a.safetensors", "bias": "a.safetensors"})
    assert error_of(p, index) == f"load_state_dict: there is no file {tmp_path / 'a.safetensors'}."
    save_file({"weight": p.weight}, tmp_path / "a.safetensors")
    assert error_of(p, index) == (
        f"load_state_dict: {tmp_path / 'a.safetensors'} lacks tensors that the index says are there: bias."
    )
    assert error_of(p, tmp_path / f"other-{INDEX}") == (
        f"load_state_dict: there is no file {tmp_path / f'other-{INDEX}'}."
    )


def test_what_to_read_must_be_clear(p: Linear, tmp_path: Path) -> None:
    """A folder with nothing to read or with several things, and files of other formats, are errors."""
    assert error_of(p, tmp_path) == (
        f"load_state_dict: {tmp_path} has neither a *.safetensors file nor an index of some: give the path of the "
        f"file to read."
    )
    tensors: dict[str, Tensor] = bridge.state_dict(p)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(tensors, tmp_path / name)
    assert error_of(p, tmp_path) == (
        f"load_state_dict: {tmp_path} has a.safetensors, b.safetensors: give the path of the file to read."
    )
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    message = error_of(p, tmp_path / "pytorch_model.bin")
    assert message.startswith(
        f"load_state_dict: {tmp_path / 'pytorch_model.bin'} cannot be read as a safetensors file: "
    )


def test_a_file_that_does_not_fit(p: Linear, tmp_path: Path) -> None:
    """The error names the file or folder."""
    save_file({"weight": p.weight}, tmp_path / "a.safetensors")
    assert error_of(p, tmp_path / "a.safetensors") == (
        f"load_state_dict: {tmp_path / 'a.safetensors'} does not fit the container:\n"
        "  missing: bias\n"
        "Names are mended with rename=, those that only one of them has are let pass by strict=False."
    )
