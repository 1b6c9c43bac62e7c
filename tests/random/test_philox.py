"""The generator itself: its published test vectors, and that every way to run it gives the same words."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn

# Random123 1.14, kat_vectors, philox4x32 with 10 rounds: counter, key, block.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def blocks(key: torch.Tensor, count: int) -> torch.Tensor:
    """The first blocks of a key's draws as python integers give them, in the order of a draw: words 0, 2, 1, 3."""
    rows = [pn.random.philox((block, 0, 0, 0), key.tolist()) for block in range(count)]
    return torch.tensor(rows, device=key.device).T[[0, 2, 1, 3]].reshape(-1)


@pytest.mark.parametrize(("counter", "key", "block"), VECTORS)
def test_published_vectors_with_integers(counter, key, block):
    """Python integers give the published blocks."""
    assert pn.random.philox(counter, key) == block


@pytest.mark.parametrize(("counter", "key", "block"), VECTORS)
def test_published_vectors_with_tensors(counter, key, block, device):
    """Tensors, whose products wrap around, give the published blocks."""
    words = pn.random.philox(torch.tensor(counter, device=device).unbind(), torch.tensor(key, device=device).unbind())
    assert tuple(int(word) for word in words) == block


@pytest.mark.parametrize(("counter", "key", "block"), VECTORS)
def test_published_vectors_when_traced(counter, key, block, device):
    """Traced code, whose products must not wrap, gives the published blocks."""

    def run(counter, key):
        return torch.stack(pn.random.philox(counter.unbind(), key.unbind()))

    counter, key = torch.tensor(counter, device=device), torch.tensor(key, device=device)
    traced = make_fx(run, tracing_mode="fake")(counter, key)
    assert tuple(traced(counter, key).tolist()) == block


def test_first_bits_of_key_zero_are_the_published_block(device):
    """A draw starts at counter zero under the key's own words."""
    assert pn.random.bits(pn.random.key(0, device), 4).tolist() == [0x6627E8D5, 0xBC57AC4C, 0xE169C58D, 0x9B00DBD8]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 63, 64, 65, 68, 400, 1001])
def test_draw_is_the_blocks_in_planes(count, device):
    """Few words and many, whole blocks and parts of them: always the blocks that python integers give."""
    key = pn.random.split(pn.random.key(3, device))[1]
    whole = -(-count // 4)
    assert torch.equal(pn.random.bits(key, count), blocks(key, whole)[:count])


def test_passes_join_without_a_seam(device):
    """A draw of several cache-sized passes is the one that a trace makes at once."""
    key, count = pn.random.key(7, device), 4 * 2**15 * 2 + 5
    traced = make_fx(lambda key: pn.random.bits(key, count), tracing_mode="fake")(key)
    assert torch.equal(pn.random.bits(key, count), traced(key))


def test_batched_passes_join_without_a_seam(device):
    """Long draws of several keys, and short ones of many, are those of each key alone."""
    for keys, count in ((3, 4 * 2**14 + 5), (2**12 + 3, 21)):
        batch = pn.random.split(pn.random.key(8, device), keys)
        together = torch.vmap(lambda key, count=count: pn.random.bits(key, count))(batch)
        for row in (0, 1, keys - 1):
            assert torch.equal(together[row], pn.random.bits(batch[row], count))


def test_threads_do_not_matter(device):
    """The number of threads changes the way but not the numbers."""
    key, count = pn.random.key(7, device), 4 * 2**15 * 3
    alone = pn.random.bits(key, count)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        together = pn.random.bits(key, count)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, together)
