"""Writing safetensors files: one tensor after the other, so that no more than one is ever copied."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from purenn.tree._checksum import LENGTH, checksum, checksum_of_text, word_weights

# What stands in the text of a file that is written here. There are several keys, so that damage to one is not taken for
# a file without a checksum.
FORMAT, CHECKSUM, CHECKSUMS = "purenn.format", "purenn.checksum", "purenn.checksums"
VERSION = "2"

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(path: Path, tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> str:
    """Make a safetensors file of tensors on any device, flushed to the disk; returns its checksum.

    Args:
        path: the file, which must not be there yet.
        tensors: by name.
        text: what to keep in the header, besides the checksums.
    """
    # Large words first: then each tensor begins at a multiple of the size of its own.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    weights = word_weights()
    # The checksums are known when everything is written. Their length is known before.
    before = sealed({**text, CHECKSUMS: json.dumps(dict.fromkeys(names, "0" * LENGTH))})
    with open(path, "xb") as file:
        file.write(_header(names, tensors, before))
        found = {
            name: checksum(_plain(tensors[name]), weights, lambda chunk: file.write(chunk.numpy().data))
            for name in names
        }
        after = sealed({**text, CHECKSUMS: json.dumps(found)})
        file.seek(0)
        file.write(_header(names, tensors, after))
        file.flush()
        os.fsync(file.fileno())
    return after[CHECKSUM]


def sealed(text: Mapping[str, str]) -> dict[str, str]:
    """The text with its own checksum."""
    whole = {**text, FORMAT: VERSION}
    return {**whole, CHECKSUM: checksum_of_text(whole)}


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A name for a file that takes the place of `target` when all has gone well, and is removed when not."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, target)
        flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Wait until the names in a folder are safe on the disk."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _header(names: list[str], tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(text)}
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    content = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
