"""Keys: made, split, folded, refused."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn
from purenn.errors import ArgumentError

SEEDS = st.integers(-(2**63), 2**64 - 1)


def test_key_holds_the_words_of_its_seed(device):
    """A key is an int64 tensor: the low and the high word of the seed."""
    key = pn.random.key((5 << 32) | 7, device)
    assert (key.dtype, tuple(key.shape), key.device.type) == (torch.int64, (2,), device.type)
    assert key.tolist() == [7, 5]


def test_negative_seed_is_its_twos_complement():
    """A negative seed is the one 2^64 above it, as for torch.manual_seed."""
    assert torch.equal(pn.random.key(-3), pn.random.key(2**64 - 3))


def test_key_lives_on_the_default_device():
    """Without a device a key follows torch's default."""
    with torch.device("meta"):
        assert pn.random.key(0).is_meta


@given(seed=SEEDS)
def test_words_of_a_key_are_words(seed):
    """Every word of every key is in [0, 2^32)."""
    keys = torch.cat([pn.random.key(seed)[None], pn.random.split(pn.random.key(seed), 3)])
    assert bool(((keys >= 0) & (keys < 2**32)).all())


def test_key_survives_copies_and_files():
    """A key is plain data: deepcopy and pickle give the same key."""
    key = pn.random.key(11)
    assert torch.equal(copy.deepcopy(key), key)
    assert torch.equal(pickle.loads(pickle.dumps(key)), key)


def test_split_unpacks(device):
    """Split gives two keys to unpack, or as many as asked."""
    first, second = pn.random.split(pn.random.key(0, device))
    assert tuple(first.shape) == tuple(second.shape) == (2,)
    assert first.device.type == device.type
    assert not torch.equal(first, second)
    assert tuple(pn.random.split(pn.random.key(0, device), 0).shape) == (0, 2)


@given(seed=SEEDS, few=st.integers(0, 20), more=st.integers(0, 60))
def test_children_do_not_depend_on_their_number(seed, few, more):
    """The first children of a large family are those of a small one."""
    key = pn.random.key(seed)
    assert torch.equal(pn.random.split(key, few + more)[:few], pn.random.split(key, few))


def test_children_differ():
    """No two of many children, of two parents, are equal, nor equal to a folded key."""
    parents = [pn.random.key(0), pn.random.key(1)]
    families = [pn.random.split(parent, 2000) for parent in parents]
    folded = [torch.vmap(pn.random.fold_in, in_dims=(None, 0))(parent, torch.arange(2000)) for parent in parents]
    keys = torch.cat([*families, *folded, torch.stack(parents)])
    assert len(torch.unique(keys, dim=0)) == len(keys)


def test_children_are_not_words_that_the_parent_draws():
    """Splits and folds count in domains of their own."""
    key = pn.random.key(0)
    drawn = set(pn.random.bits(key, 4000).tolist())
    children = {*pn.random.split(key, 500).flatten().tolist(), *pn.random.fold_in(key, 0).tolist()}
    assert not drawn & children


@given(seed=SEEDS, data=st.integers(-(2**63), 2**63 - 1))
def test_fold_in_takes_integers_and_tensors_alike(seed, data):
    """A python integer and a tensor of it give the same key."""
    key = pn.random.key(seed)
    assert torch.equal(pn.random.fold_in(key, data), pn.random.fold_in(key, torch.tensor(data)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8])
def test_fold_in_takes_every_integer_dtype(dtype, device):
    """A tensor's largest integer is that integer, in every dtype, batched and traced too."""
    key, largest = pn.random.key(0, device), torch.iinfo(dtype).max
    data = torch.tensor(largest, dtype=dtype, device=device)
    want = pn.random.fold_in(key, largest)
    assert torch.equal(pn.random.fold_in(key, data), want)
    assert torch.equal(torch.vmap(lambda data: pn.random.fold_in(key, data))(data.expand(2)), want.expand(2, 2))
    assert torch.equal(make_fx(pn.random.fold_in, tracing_mode="fake")(key, data)(key, data), want)


def test_fold_in_uses_all_64_bits():
    """Data that differ in the high word give different keys."""
    key = pn.random.key(0)
    assert not torch.equal(pn.random.fold_in(key, 1), pn.random.fold_in(key, 1 + 2**32))


@pytest.mark.parametrize("in_dim", [0, 1])
def test_split_and_fold_under_vmap(in_dim, device):
    """Split and fold_in over a batch of keys, of data, and of both, are those of each."""
    keys, data = pn.random.split(pn.random.key(2, device), 5), torch.arange(5, device=device) - 2
    batch = keys.movedim(0, in_dim)
    for n in (1, 3, 40):
        split = torch.vmap(lambda key, n=n: pn.random.split(key, n), in_dims=in_dim)(batch)
        assert torch.equal(split, torch.stack([pn.random.split(key, n) for key in keys]))
        assert split.is_contiguous()
    both = torch.vmap(pn.random.fold_in, in_dims=(in_dim, 0))(batch, data)
    assert torch.equal(
        both, torch.stack([pn.random.fold_in(key, step) for key, step in zip(keys, data.tolist(), strict=True)])
    )
    steps = torch.vmap(pn.random.fold_in, in_dims=(None, 0))(keys[0], data)
    assert torch.equal(steps, torch.stack([pn.random.fold_in(keys[0], step) for step in data]))
    fixed = torch.vmap(lambda key: pn.random.fold_in(key, 1003), in_dims=in_dim)(batch)
    assert torch.equal(fixed, torch.stack([pn.random.fold_in(key, 1003) for key in keys]))


def test_split_and_fold_when_traced(device):
    """Split and fold_in in a trace, with data known and unknown, are those outside."""
    key, step = pn.random.key(2, device), torch.tensor(-9, device=device)

    def run(key, step):
        return pn.random.split(key, 5), pn.random.fold_in(key, step), pn.random.fold_in(key, 12)

    traced = make_fx(run, tracing_mode="fake")(key, step)
    other = pn.random.split(key)[0]
    for got, want in zip(traced(other, step + 4), run(other, step + 4), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: pn.random.key(1.5), "seed must be an integer, not float 1.5"),
        (
            lambda: pn.random.key(2**64),
            "seed must lie in [-2^63, 2^64), not 18446744073709551616; hash it to 64 bits first",
        ),
        (
            lambda: pn.random.key(torch.tensor(3)),
            "seed must be a python int, not a tensor; to make keys from tensors write fold_in(key(0), data)",
        ),
        (
            lambda: pn.random.normal(3, (2,)),
            "key must be a random key, a tensor made by purenn.random.key(seed), not int 3",
        ),
        (
            lambda: pn.random.normal(torch.zeros(2), (2,)),
            "key must have dtype torch.int64, not torch.float32; make it with purenn.random.key(seed) and leave it "
            "out of dtype casts",
        ),
        (
            lambda: pn.random.normal(pn.random.split(pn.random.key(0), 5), (2,)),
            "key must be one key of shape [2], not a batch of keys of shape [5, 2]; write purenn.vmap(draw)(keys) to "
            "draw with each of them",
        ),
        (
            lambda: pn.random.split(torch.arange(3)),
            "key must have shape [2], not [3]; make it with purenn.random.key(seed) or purenn.random.split",
        ),
        (
            lambda: pn.random.split(pn.random.key(0), -1),
            "n must be the number of keys, an int of at least 0, not -1",
        ),
        (
            lambda: pn.random.split(pn.random.key(0), True),
            "n must be the number of keys, an int of at least 0, not True",
        ),
        (
            lambda: pn.random.split(pn.random.key(0), 2.0),
            "n must be the number of keys, an int of at least 0, not 2.0",
        ),
        (
            lambda: pn.random.fold_in(pn.random.key(0), "step"),
            "data must be an integer, not str 'step'",
        ),
        (
            lambda: pn.random.fold_in(pn.random.key(0), torch.tensor(1.0)),
            "data must be an integer tensor, not one of torch.float32; fold in a step or an index",
        ),
        (
            lambda: pn.random.fold_in(pn.random.key(0), torch.arange(3)),
            "data must be one integer, a tensor without dimensions, not one of shape [3]; write "
            "purenn.vmap(fold_in, in_dims=(None, 0))(key, data) for a key each",
        ),
    ],
)
def test_errors(call, text):
    """Wrong keys and data are refused with what to do instead."""
    with pytest.raises(ArgumentError) as caught:
        call()
    assert str(caught.value) == text


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_children_under_vmap_are_those_of_each_key(n, device):
    """Splitting and folding a batch of keys, nested and in any dimension, is the loop over them, bit for bit."""
    keys = pn.random.split(pn.random.key(6, device), 6)
    for use in (lambda key: pn.random.split(key, n), lambda key: pn.random.fold_in(key, 2**40 + n)):
        want = torch.stack([use(key) for key in keys])
        assert torch.equal(torch.vmap(use, in_dims=1)(keys.T), want)
        nested = torch.vmap(torch.vmap(use), in_dims=1)(keys.reshape(2, 3, 2))
        assert torch.equal(nested, want.unflatten(0, (2, 3)).transpose(0, 1))
        traced = make_fx(torch.vmap(use), tracing_mode="fake")(keys)
        assert torch.equal(traced(keys), want)
