"""Saving and loading tensors by path names."""

import hashlib
import json
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from _models import Affine, Box, Chain, Count, make_affine, make_chain, make_tied
from safetensors import safe_open

import purenn as pn
from purenn.errors import CheckpointError, SelectionError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def round_trip(file: Path, tree: Any) -> Any:
    pn.save(file, tree)
    return pn.load(file, like=pn.tree.map(torch.zeros_like, tree))


def folder(file: Path) -> list[str]:
    return sorted(os.listdir(file.parent))


# ---------------------------------------------------------------------------------------------------- round trips


def test_round_trip(file: Path, device: torch.device) -> None:
    """A model comes back bit for bit, with options, marks, buffers and absent children from the given tree."""
    x = torch.randn(3, device=device)
    p = pn.tree.freeze(Chain((make_chain(device=device), Count(x, x + 1), Box({"b": x, "a": (x, None)}, mode="m"))))
    q = round_trip(file, p)
    assert pn.tree.equal(p, q)
    assert pn.tree.device(q) == pn.tree.device(p)
    assert folder(file) == ["model.safetensors"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_dtypes(dtype: torch.dtype, file: Path, device: torch.device) -> None:
    """Every dtype keeps its bits, in scalars and empty tensors too."""
    x = torch.tensor([0.0, 1.0, 3.0, 0.5], device=device).to(dtype)
    tree = {"vector": x, "scalar": x[1], "empty": x[:0].reshape(0, 3)}
    assert pn.tree.equal(round_trip(file, tree), tree)


def test_special_values(file: Path, device: torch.device) -> None:
    """NaN, infinities, negative zero and denormal numbers keep their bits."""
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45], device=device)
    assert torch.equal(round_trip(file, x).view(torch.int32), x.view(torch.int32))


def test_views(file: Path, device: torch.device) -> None:
    """Views, transposed, strided, expanded and lazily conjugated or negated tensors store their own values."""
    x = torch.arange(24.0, device=device).reshape(4, 6)
    z = torch.tensor([1 + 2j, 3 - 4j], device=device)
    tree = {
        "base": x,
        "row": x[1],
        "column": x[:, 1],
        "transposed": x.T,
        "strided": x[::2, ::3],
        "expanded": x[:, :1].expand(4, 3),
        "channels": torch.ones(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last),
        "conjugated": z.conj(),
        "negated": z.conj().imag,
    }
    assert pn.tree.equal(round_trip(file, tree), tree)


def test_leaves_that_share_storage(file: Path, device: torch.device) -> None:
    """Two leaves that are the same tensor, or overlap, are stored twice and come back as two tensors."""
    x = torch.arange(6.0, device=device)
    q = round_trip(file, {"a": x, "b": x, "c": x[2:], "d": x.reshape(2, 3)})
    assert pn.tree.equal(q, {"a": x, "b": x, "c": x[2:], "d": x.reshape(2, 3)})
    assert q["a"].data_ptr() != q["b"].data_ptr()
    assert os.path.getsize(file) < 600


def test_parameters_that_require_gradients(file: Path, device: torch.device) -> None:
    """Leaves that require gradients are saved without their graph, and loaded without."""
    x = torch.nn.Parameter(torch.ones(2, device=device))
    q = round_trip(file, Affine(x, x * 2))
    assert not q.weight.requires_grad
    assert pn.tree.equal(q, Affine(x, x * 2))


def test_bare_tensors(file: Path, device: torch.device) -> None:
    """A tree that is a tensor is stored under the name "leaf"; an empty tree makes an empty file."""
    x = torch.ones(2, device=device)
    assert torch.equal(round_trip(file, x), x)
    assert list(safetensors.torch.load_file(file)) == ["leaf"]
    assert round_trip(file, Box()) is not None
    assert safetensors.torch.load_file(file) == {}


def test_the_file_is_plain_safetensors(file: Path, device: torch.device) -> None:
    """Any safetensors reader finds the tensors under their paths."""
    p = make_chain(device=device)
    pn.save(str(file), p)
    stored = safetensors.torch.load_file(file)
    assert set(stored) == {path for path, _ in pn.tree.named_leaves(p)}
    for path, leaf in pn.tree.named_leaves(p):
        assert torch.equal(stored[path], leaf.cpu())


def test_load_onto_the_devices_of_the_tree(file: Path, device: torch.device) -> None:
    """Loaded leaves are where the given tree's leaves are; for meta leaves on the CPU."""
    p = make_chain(device=device)
    pn.save(file, p)
    on_meta = pn.load(file, like=pn.tree.to(p, "meta"))
    assert pn.tree.equal(on_meta, pn.tree.to(p, "cpu"))
    assert pn.tree.device(pn.load(file, like=p)) == pn.tree.device(p)


def test_load_a_part(file: Path, device: torch.device) -> None:
    """A part of a model is saved and loaded as any tree: holes have no tensors."""
    p = make_chain(device=device)
    part, rest = pn.tree.partition(p, paths="layers.0")
    pn.save(file, part)
    assert set(safetensors.torch.load_file(file)) == {"layers.0.weight", "layers.0.bias"}
    zeros = pn.tree.map(torch.zeros_like, part)
    assert pn.tree.equal(pn.tree.combine(pn.load(file, like=zeros), rest), p)


def test_load_some_leaves(file: Path, device: torch.device) -> None:
    """With paths only the leaves there are read, and all others stay; what else the file has does not count."""
    p = make_chain(device=device)
    pn.save(file, p)
    some = pn.load(file, like=pn.tree.to(p, "meta"), paths="layers.0")
    assert pn.tree.equal(some.layers[0], pn.tree.to(p.layers[0], "cpu"))
    assert some.layers[1].weight.is_meta
    other = Chain((pn.tree.map(torch.zeros_like, p.layers[0]), Affine(torch.ones(7, device=device))), name="other")
    assert pn.tree.equal(pn.load(file, like=other, paths="**.0.weight").layers[0].weight, p.layers[0].weight)
    assert pn.load(file, like=other, paths=["layers.0.bias"]).layers[1] is not None
    with pytest.raises(CheckpointError) as error:
        pn.load(file, like=other, paths=("layers.0.bias", "layers.1"))
    assert str(error.value) == (
        f"load: {file} does not fit the tree:\n"
        "  different: layers.1.weight is f32[2,4] in the file, f32[7] in the tree\n"
        "Give a tree of the structure that was saved."
    )
    with pytest.raises(SelectionError):
        pn.load(file, like=p, paths="layers.7")


def test_load_a_tied_part(file: Path, device: torch.device) -> None:
    """A tied leaf is stored once, and read if one of its places is asked for."""
    p = make_tied(device=device)
    pn.save(file, p)
    assert set(safetensors.torch.load_file(file)) == {"layers.0.weight", "layers.0.bias", "layers.1.bias"}
    zeros = pn.tree.map(torch.zeros_like, p)
    assert pn.tree.equal(pn.load(file, like=zeros), p)
    some = pn.load(file, like=zeros, paths="layers.1.weight")
    assert torch.equal(some.layers[0].weight, p.layers[0].weight)
    assert not some.layers[0].bias.any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory use from /proc")
@pytest.mark.parametrize("most", [1 << 30, 1 << 22])
def test_only_what_is_asked_for_is_read(file: Path, most: int) -> None:
    """Of 64 MiB, memory is taken for the leaves that are asked for; unverified, for what is used; and never twice."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

    pn.save(file, {str(number): torch.ones(1 << 20) for number in range(16)}, max_shard_size=most)
    meta = {str(number): torch.empty(1 << 20, device="meta") for number in range(16)}
    before = resident()
    some = pn.load(file, like=meta, paths="3")
    assert resident() - before < 16
    mapped = pn.load(file, like=meta, verify=False)
    assert resident() - before < 16
    assert some["3"][17] == mapped["5"][17] == 1
    del some, mapped
    whole = pn.load(file, like=meta)
    assert sum(leaf.sum() for leaf in whole.values()) == 1 << 24
    assert resident() - before < 96


def test_what_is_loaded_is_ours(file: Path) -> None:
    """Writing into a loaded tensor does not change the file."""
    pn.save(file, torch.zeros(3))
    pn.load(file, like=torch.zeros(3)).fill_(1)
    assert not pn.load(file, like=torch.zeros(3)).any()


def test_metadata(file: Path) -> None:
    """Text travels in the header; without any it is empty."""
    pn.save(file, torch.ones(1), metadata={"step": "3", "ä": "ö"})
    assert pn.tree.metadata(file) == {"step": "3", "ä": "ö"}
    pn.save(file, torch.ones(1))
    assert pn.tree.metadata(file) == {}


def test_the_file_has_the_usual_permissions(file: Path) -> None:
    """A checkpoint can be read by whom the process's umask lets read, as any file."""
    pn.save(file, torch.ones(1))
    other = file.with_name("other")
    other.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


# ---------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("when", ["os.fsync", "os.replace"])
def test_a_failing_write_leaves_everything_as_it_was(when: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If writing fails in the middle, the old file is whole and nothing else lies beside it."""
    pn.save(file, torch.ones(2))
    before = file.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(when, fail)
    with pytest.raises(OSError, match="disk full"):
        pn.save(file, torch.zeros(3))
    assert file.read_bytes() == before
    assert folder(file) == [file.name]


def test_saving_over_the_file_that_is_loaded(file: Path) -> None:
    """A model that was loaded from a file can be saved over it: the loaded tensors keep their values."""
    pn.save(file, torch.ones(1000))
    x = pn.load(file, like=torch.zeros(1000))
    pn.save(file, x * 2)
    assert torch.equal(x, torch.ones(1000))
    assert torch.equal(pn.load(file, like=x), x * 2)


SAVE_ERRORS: list[Any] = [
    (
        Box((1.5,)),
        "save: 'content.0' is 1.5, no tensor: store it as a tensor, or declare the field as pn.static().",
    ),
    (3, "save: the tree itself is 3, no tensor: store it as a tensor, or declare the field as pn.static()."),
    (
        Affine(torch.ones(2, 3, device="meta")),
        "save: 'weight' (f32[2,3]) is on the meta device and has no data.",
    ),
    (Affine(torch.ones(2).to_sparse()), "save: 'weight' (f32[2]) is sparse: save its .to_dense()."),
    (
        Affine(torch.ones(2, dtype=torch.complex128)),
        "save: 'weight' (c128[2]) has a dtype that safetensors files cannot hold: save torch.view_as_real(x), or cast "
        "to complex64.",
    ),
    (
        torch.ones(2, dtype=torch.float16).view(torch.complex32),
        "save: the tree itself (complex32[1]) has a dtype that safetensors files cannot hold: cast to complex64.",
    ),
    ({"__metadata__": torch.ones(1)}, "save: '__metadata__' is reserved in safetensors files: rename the dict key."),
]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize(("tree", "message"), SAVE_ERRORS)
def test_save_errors(tree: Any, message: str, file: Path) -> None:
    """What the format cannot hold is refused with its path, and no file is made."""
    with pytest.raises(CheckpointError) as error:
        pn.save(file, tree)
    assert str(error.value) == message
    assert folder(file) == []


def test_save_to_impossible_places(file: Path) -> None:
    """A missing folder, a folder in the file's place, and metadata that is no text are errors."""
    x = torch.ones(1)
    missing = file.parent / "no" / "model.safetensors"
    cases: list[Any] = [
        (missing, {}, f"save: {missing} cannot be written: there is no folder {missing.parent}."),
        (file.parent, {}, f"save: {file.parent} cannot be written: it is a folder."),
        (file, {"metadata": {"step": 3}}, "save: metadata must map text to text, got 'step': 3."),
        (file, {"metadata": {3: "step"}}, "save: metadata must map text to text, got 3: 'step'."),
        (
            file,
            {"metadata": {"purenn.format": "7"}},
            "save: 'purenn.format' is a name that files need themselves: give the metadata another one.",
        ),
    ]
    for path, options, message in cases:
        with pytest.raises(CheckpointError) as error:
            pn.save(path, x, **options)
        assert str(error.value) == message
    assert folder(file) == []


def test_a_file_that_does_not_fit(file: Path) -> None:
    """Everything that is missing, unexpected or different is listed in one error."""
    x = torch.ones(2)
    pn.save(file, Box({"a": x, "b": x, "c": torch.ones(3), "d": x.double(), "e": x}))
    like = Box({"a": x, "c": x, "d": x, "f": x, "e": 1.5}, x)
    with pytest.raises(CheckpointError) as error:
        pn.load(file, like=like)
    assert str(error.value) == (
        f"load: {file} does not fit the tree:\n"
        "  missing: content.f\n"
        "  missing: state\n"
        "  unexpected: content.b f32[2]\n"
        "  different: content.c is f32[3] in the file, f32[2] in the tree\n"
        "  different: content.d is f64[2] in the file, f32[2] in the tree\n"
        "  no tensor in the tree: content.e is 1.5\n"
        "Give a tree of the structure that was saved."
    )


@pytest.mark.parametrize("content", [b"", b"hello", b"\x10" + bytes(7) + b"not a header....", bytes(8)])
def test_corrupt_files(content: bytes, file: Path) -> None:
    """A file that is no safetensors file is refused, with the reader's reason."""
    file.write_bytes(content)
    for verb, read in (
        ("load", lambda: pn.load(file, like=torch.ones(1))),
        ("metadata", lambda: pn.tree.metadata(file)),
    ):
        with pytest.raises(CheckpointError) as error:
            read()
        assert str(error.value) == f"{verb}: {file} cannot be read as a safetensors file: {error.value.__cause__}."


def entry(start: int, end: int, **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end], **more}


def write_header(file: Path, header: bytes | dict[str, Any], *, length: int | None = None) -> None:
    """A file of eight bytes of data under some header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(8))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": entry(0, 8), "b": entry(4, 8)}, None),
        ({"a": entry(0, 4), "b": entry(0, 8)}, None),
        ({"a": entry(0, 2**40)}, None),
        ({"a": entry(0, 8, shape=[2**62, 4])}, None),
        ({"a": entry(0, 8, dtype="object")}, None),
        ({"a": entry(0, 8), "__metadata__": {"epoch": 3}}, None),
        ({"a": entry(0, 8), "__metadata__": []}, None),
        ({"a": entry(0, 8)}, 2**40),
        ({"a": entry(0, 8)}, 2**64 - 1),
        ({"a": entry(0, 8)}, 3),
    ],
)
def test_hostile_headers(file: Path, header: Any, length: int | None) -> None:
    """Overlapping, far or impossible entries, text that is none, and enormous lengths are refused by the reader."""
    write_header(file, header, length=length)
    with pytest.raises(CheckpointError) as error:
        pn.load(file, like={"a": torch.ones(2)})
    assert str(error.value) == f"load: {file} cannot be read as a safetensors file: {error.value.__cause__}."


def test_names_that_stand_twice(file: Path) -> None:
    """A header with two entries of one name is refused: readers differ in which of them counts."""
    one, other = (json.dumps(entry(0, 8, dtype=dtype, shape=[2])).encode() for dtype in ("F32", "I32"))
    write_header(file, b'{"a":' + one + b',"a":' + other + b"}")
    with pytest.raises(CheckpointError) as error:
        pn.load(file, like={"a": torch.ones(2)})
    assert str(error.value) == f"load: {file} is damaged: 'a' stands in it twice."


def forged(file: Path, **changes: str) -> str:
    """The error for a file with another text, with its right checksum."""
    pn.save(file, torch.ones(1))
    with safe_open(file, "pt") as opened:
        text = {**opened.metadata(), **{f"purenn.{name}": value for name, value in changes.items()}}
    content = sorted((name, value) for name, value in text.items() if name != "purenn.checksum")
    text["purenn.checksum"] = hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()
    safetensors.torch.save_file({"leaf": torch.ones(1)}, file, metadata=text)
    with pytest.raises(CheckpointError) as error:
        pn.load(file, like=torch.ones(1))
    return str(error.value)


def test_forged_texts(file: Path) -> None:
    """Whoever makes the checksums, too, gets an error for texts that cannot be."""
    damaged = f"load: {file} is damaged: "
    assert forged(file, checksums="[]") == damaged + "its contents do not have its checksum."
    assert forged(file, checksums="{}") == damaged + "its contents do not have its checksum."
    assert forged(file, configuration="[]") == damaged + "its configuration is none."
    assert forged(file, configuration='{"": ["x:Box"]}') == damaged + "its configuration is none."
    assert forged(file, configuration="{").startswith(f"load: {file} cannot be read as JSON: ")
    assert forged(file, configuration="[" * 100_000).startswith(f"load: {file} cannot be read as JSON: ")
    assert forged(file, format="3") == (
        f"load: {file} has the format 3, this version of purenn knows 2: install the one that has saved it."
    )


def test_truncated_file(file: Path) -> None:
    """A file that was cut off is refused."""
    pn.save(file, make_affine())
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError) as error:
        pn.load(file, like=make_affine())
    assert str(error.value) == f"load: {file} cannot be read as a safetensors file: {error.value.__cause__}."


def test_missing_files(file: Path) -> None:
    """A file that is not there, or a folder with nothing to read, is an error with its name."""
    cases = [
        (file, f"there is no file {file}."),
        (
            file.parent,
            f"{file.parent} has neither a *.safetensors file nor an index of some: give the path of the file to read.",
        ),
    ]
    for path, message in cases:
        with pytest.raises(CheckpointError) as error:
            pn.load(path, like=torch.ones(1))
        assert str(error.value) == f"load: {message}"
        with pytest.raises(CheckpointError) as error:
            pn.tree.metadata(path)
        assert str(error.value) == f"metadata: {message}"
