"""A checksum of named tensors, fast enough to be made of everything that is saved and loaded.

Each block of 64-bit words is multiplied with odd weights, each place with its own, and summed modulo 2^64: a change of
any one word changes the sum, and so do words that change places. The sums, with names, dtypes and shapes, are hashed.
It finds damage, and it is no protection against somebody who wants to deceive.
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1 << 18  # words; they and their weights stay in the processor's cache


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A text of 32 characters that tells whether contiguous tensors on the CPU are the same, bit for bit."""
    found = hashlib.blake2b(digest_size=16)
    longest = max((tensor.nbytes for tensor in tensors.values()), default=0)
    weights = 2 * torch.arange(min(_BLOCK, longest // 8 + 1)) + 1
    for name in sorted(tensors):
        tensor = tensors[name]
        sums = [int(torch.dot(words, weights[: len(words)])) for words in _words(tensor)]
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape), sums)).encode())
    return found.hexdigest()


def _words(tensor: Tensor) -> Iterator[Tensor]:
    # All bytes as integers of 64 bits, block by block, the last few in a word of their own.
    data = tensor.detach().reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8 or data.data_ptr() % 8:
        data = data.clone()
    whole = len(data) // 8 * 8
    yield from data[:whole].view(torch.int64).split(_BLOCK)
    if whole < len(data):
        yield F.pad(data[whole:], (0, 8 - len(data) + whole)).view(torch.int64)
