"""A checksum of a tensor, fast enough to be made of everything that is saved and loaded, and one of text.

Each block of 64-bit words is multiplied with odd weights, each place with its own, and summed modulo 2^64: a change of
any one word changes the sum, and so do words that change places. The sums, with dtype and shape, are hashed. It finds
damage, and it is no protection against somebody who wants to deceive.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1 << 17  # words; they and their weights stay in the processor's cache
_CHUNK = 1 << 22  # bytes; large enough for a disk, small enough to be written before they leave the cache
#: How many characters a tensor's checksum has.
LENGTH = 16


def word_weights() -> Tensor:
    """The weights of the words of a block."""
    return 2 * torch.arange(_BLOCK, device="cpu") + 1


def checksum(tensor: Tensor, weights: Tensor, also: Callable[[Tensor], Any] | None = None) -> str:
    """A text that tells whether contiguous tensors on the CPU are the same, bit for bit.

    Args:
        tensor: the tensor.
        weights: what `word_weights` has made.
        also: what else to do with its bytes, chunk by chunk, while they are in the processor's cache.
    """
    found = hashlib.blake2b(repr((str(tensor.dtype), tuple(tensor.shape))).encode(), digest_size=LENGTH // 2)
    for chunk in tensor.detach().reshape(-1).view(torch.uint8).split(_CHUNK):
        for words in _words(chunk):
            total = int(torch.dot(words, weights[: len(words)]))
            found.update(total.to_bytes(8, "little", signed=True))
        if also is not None:
            also(chunk)
    return found.hexdigest()


def checksum_of_text(text: Mapping[str, str]) -> str:
    """A text that tells whether texts by name are the same."""
    return hashlib.blake2b(repr(sorted(text.items())).encode(), digest_size=16).hexdigest()


def _words(data: Tensor) -> Iterator[Tensor]:
    # All bytes as integers of 64 bits, block by block, the last few in a word of their own.
    if data.storage_offset() % 8 or data.data_ptr() % 8:
        data = data.clone()
    whole = len(data) // 8 * 8
    yield from data[:whole].view(torch.int64).split(_BLOCK)
    if whole < len(data):
        yield F.pad(data[whole:], (0, 8 - len(data) + whole)).view(torch.int64)
