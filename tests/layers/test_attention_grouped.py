"""Grouped-query attention: torch's with repeated keys, and step by step with a cache what whole sequences give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _reference import numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

import purenn as pn
from purenn import layers


def key(device: torch.device) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(0, device=device)


def grouped(device: torch.device, **options: Any) -> layers.GroupedQueryAttention:
    """A small layer in float64, with two heads of keys for four of queries."""
    sizes = {"num_kv_heads": 2, "head_dim": 4, "dtype": torch.float64, **options}
    return layers.GroupedQueryAttention.init(key(device), 6, 4, **sizes)


@given(
    batch=st.sampled_from([(), (2,), (2, 1)]),
    kv_heads=st.sampled_from([1, 2, 4]),
    rotary=st.sampled_from([None, 2, 4]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3]),
    bias=st.booleans(),
    masked=st.booleans(),
)
def test_grouped_query_attention(
    batch: tuple[int, ...],
    kv_heads: int,
    rotary: int | None,
    causal: bool,
    window: int | None,
    bias: bool,
    masked: bool,
    device: torch.device,
) -> None:
    """It is torch's attention with repeated keys, the window as a mask and the positions turned."""
    turns = None if rotary is None else layers.RotaryEmbedding(rotary)
    p = grouped(device, num_kv_heads=kv_heads, rotary=turns, causal=causal, window=window, bias=bias)
    x = numbers(*batch, 5, 6, device=device)
    allowed = numbers(5, 5, device=device) > -0.5 if masked else None
    i, j = torch.arange(5, device=device)[:, None], torch.arange(5, device=device)
    total = torch.ones(5, 5, dtype=torch.bool, device=device) if allowed is None else allowed
    total = total & (i >= j) if causal else total
    total = total if window is None else total & ((i - j).abs() < window)
    q, k, v = (
        F.linear(x, part.weight, part.bias).unflatten(-1, (-1, 4)).transpose(-3, -2)
        for part in (p.q_proj, p.k_proj, p.v_proj)
    )
    if turns is not None:
        q, k = turns(q), turns(k)
    k, v = (part.repeat_interleave(4 // kv_heads, -3) for part in (k, v))
    out = torch.where(total.any(-1, keepdim=True), F.scaled_dot_product_attention(q, k, v, attn_mask=total), 0)
    expected = F.linear(out.transpose(-3, -2).flatten(-2), p.o_proj.weight, p.o_proj.bias)
    same(layers.grouped_query_attention(p, x, mask=allowed), expected)


@given(
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    window=st.sampled_from([None, 2, 5]),
    batch=st.sampled_from([(), (2,)]),
    spare=st.integers(0, 3),
)
def test_cache_equals_whole_sequences(
    chunks: list[int], window: int | None, batch: tuple[int, ...], spare: int, device: torch.device
) -> None:
    """Chunk by chunk with a cache gives what the whole sequence gives, also if a window needs less than all of it."""
    p = grouped(device, window=window, rotary=layers.RotaryEmbedding(4))
    length = sum(chunks)
    x = numbers(*batch, length, 6, device=device)
    kept = length if window is None else min(length, window + max(chunks) - 1)
    cache = layers.KeyValueCache.init(p, kept + spare, batch=batch)
    parts = []
    for chunk in x.split(chunks, -2):
        y, cache = layers.cached_attention(p, chunk, cache)
        parts.append(y)
    same(torch.cat(parts, -2), layers.grouped_query_attention(p, x))
    assert cache.position == length


def test_cache_mask(device: torch.device) -> None:
    """A mask of the cache's indices holds besides causality, for example for padding on the left."""
    p = grouped(device)
    x = numbers(2, 4, 6, device=device)
    cache = layers.KeyValueCache.init(p, 4, batch=(2,))
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], device=device).bool()[:, None, None]
    y, cache = layers.cached_attention(p, x[:, :3], cache, mask=real)
    z, _ = layers.cached_attention(p, x[:, 3:], cache, mask=real)
    same(torch.cat((y, z), 1)[0, 1:], layers.grouped_query_attention(p, x[0, 1:]))
    same(torch.cat((y, z), 1), layers.grouped_query_attention(p, x, mask=real))


def test_cache_under_transformations(device: torch.device) -> None:
    """Under vmap every example may be at a place of its own; gradients flow through the cache; one trace serves all."""
    p = grouped(device, rotary=layers.RotaryEmbedding(4))
    x = numbers(3, 4, 6, device=device)

    def after(start: Tensor, x: Tensor) -> Tensor:
        cache = layers.KeyValueCache.init(p, 8)
        _, cache = layers.cached_attention(p, x[:3], cache)
        cache = pn.replace(cache, position=start)
        return layers.cached_attention(p, x[3:], cache)[0]

    starts = torch.tensor([1, 2, 3], device=device)
    same(vmap(after)(starts, x), torch.stack([after(s, e) for s, e in zip(starts, x, strict=True)]))
    one_by_one = torch.stack([grad(lambda x, s=s: after(s, x).sum())(e) for s, e in zip(starts, x, strict=True)])
    same(vmap(grad(lambda x, s: after(s, x).sum()))(x, starts), one_by_one)
    step = pn.assert_max_traces(1)(pn.jit(layers.cached_attention, backend="aot_eager"))
    cache = layers.KeyValueCache.init(p, 8)
    for position in range(4):
        before = [leaf.clone() for leaf in pn.tree.leaves(cache)]
        y, new = step(p, x[0, position : position + 1].clone(), cache)
        same(list(pn.tree.leaves(cache)), before)
        cache = new
    same(y, layers.grouped_query_attention(p, x[0])[-1:])


TABLE: dict[str, tuple[Callable[[int], Any], Callable[..., Tensor]]] = {
    "grouped": (
        lambda seed: layers.GroupedQueryAttention.init(
            *(pn.random.key(seed), 6, 4),
            num_kv_heads=2,
            head_dim=4,
            window=2,
            rotary=layers.RotaryEmbedding(4),
            dtype=torch.float64,
        ),
        layers.grouped_query_attention,
    ),
    "cached": (
        lambda seed: layers.GroupedQueryAttention.init(
            *(pn.random.key(seed), 6, 4), num_kv_heads=2, head_dim=4, dtype=torch.float64
        ),
        lambda p, x: layers.cached_attention(
            p, x[:, 2:], layers.cached_attention(p, x[:, :2], layers.KeyValueCache.init(p, 4, batch=(2,)))[1]
        )[0],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_transformations(name: str, device: torch.device) -> None:
    """Whole sequences and cached ones keep the promises of the shared table."""
    make, function = TABLE[name]
    check_transformations(lambda seed: pn.tree.to(make(seed), device), function, numbers(2, 2, 3, 6, device=device))


def test_init_and_repr(device: torch.device) -> None:
    """The names are Llama's, meta draws nothing, and the options are printed."""
    p = layers.GroupedQueryAttention.init(key(device), 8, 4, num_kv_heads=2, window=3, bias=True, device="meta")
    assert [(name, tuple(leaf.shape)) for name, leaf in pn.tree.named_leaves(p)][::2] == [
        ("q_proj.weight", (8, 8)),
        ("k_proj.weight", (4, 8)),
        ("v_proj.weight", (4, 8)),
        ("o_proj.weight", (8, 8)),
    ]
    assert all(leaf.is_meta for leaf in pn.tree.leaves(p))
    assert repr(p).splitlines()[0] == "GroupedQueryAttention(num_heads=4, num_kv_heads=2, causal=True, window=3"


KEY = pn.random.key(0)
GROUPED = layers.GroupedQueryAttention.init(KEY, 6, 4, num_kv_heads=2, head_dim=4)
X = torch.zeros(3, 5, 6)
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: layers.GroupedQueryAttention.init(KEY, 8, 4, num_kv_heads=3),
        pn.errors.ArgumentError,
        "GroupedQueryAttention.init: num_heads must be a multiple of num_kv_heads, so that all groups have the same "
        "size, got num_heads=4 and num_kv_heads=3.",
    ),
    (
        lambda: layers.GroupedQueryAttention.init(KEY, 9, 4),
        pn.errors.ArgumentError,
        "GroupedQueryAttention.init: embed_dim=9 is not a multiple of num_heads=4: choose another number of heads, or "
        "set head_dim.",
    ),
    (
        lambda: layers.GroupedQueryAttention.init(KEY, 8, 4, rotary=layers.RotaryEmbedding(4)),
        pn.errors.ArgumentError,
        "GroupedQueryAttention.init: rotary turns dim=4 features, but a head has 2: make it RotaryEmbedding(2).",
    ),
    (
        lambda: layers.GroupedQueryAttention.init(KEY, 8, 4, window=0),
        pn.errors.ArgumentError,
        "GroupedQueryAttention.init: window must be at least 1, a position's own, or None for all, got 0.",
    ),
    (
        lambda: layers.grouped_query_attention(GROUPED, torch.zeros(6)),
        pn.errors.ShapeError,
        "grouped_query_attention: expected x [*batch, length, embed_dim], got [6].",
    ),
    (
        lambda: layers.cached_attention(GROUPED, X, layers.KeyValueCache.init(GROUPED, 8)),
        pn.errors.ShapeError,
        "cached_attention: for an input of shape [3, 5, 6] the cache must hold keys and values of shape [3, 2, 8, 4], "
        "got [2, 8, 4] and [2, 8, 4]. Make it with KeyValueCache.init(p, 8, batch=(3,)).",
    ),
    (
        lambda: layers.cached_attention(GROUPED, X[0], layers.KeyValueCache.init(GROUPED, 4)),
        pn.errors.ShapeError,
        "cached_attention: 5 new positions do not fit into a cache that keeps 4: give them in several calls, or make a "
        "longer cache.",
    ),
    (
        lambda: layers.cached_attention(
            layers.GroupedQueryAttention.init(KEY, 6, 2, causal=False), X[0], layers.KeyValueCache.init(GROUPED, 8)
        ),
        pn.errors.ArgumentError,
        "cached_attention: the layer is not causal, so earlier positions would have to see the new ones: use "
        "grouped_query_attention on whole sequences.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    """What does not fit is refused with what was expected, what came, and what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
