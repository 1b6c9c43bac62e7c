"""Attention layers: torch's own for every option and mask, and what torch's does not do."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _reference import check_equals_module, filled, numbers, same
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import bridge
import purenn as pn
from purenn import layers, ops


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def chosen(*shape: int, share: float, seed: int = 0, device: torch.device) -> Tensor:
    """A boolean mask, True in about that share of its places, and never in the last column."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    mask[..., -1] = False
    return mask.to(device)


def pair(device: torch.device, *sizes: int, **options: Any) -> tuple[layers.MultiheadAttention, nn.Module]:
    """A container and a module of the same options, in float64, with biases that are not zero."""
    module = nn.MultiheadAttention(*sizes, **options, dtype=torch.float64, device=device)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = numbers(*parameter.shape, seed=seed, device=device) / 2
    return layers.MultiheadAttention.init(key(device), *sizes, **options, dtype=torch.float64), module


def shaped(batch: int | None, length: int, features: int, batch_first: bool, seed: int, device: torch.device) -> Tensor:
    """An input in the order of dimensions that a layer takes."""
    order = (length, features) if batch is None else (batch, length, features)
    x = numbers(*order, seed=seed, device=device)
    return x if batch is None or batch_first else x.transpose(0, 1).contiguous()


# Multi-head attention is torch's.


@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 3),
    batch=st.sampled_from([None, 1, 2, 3]),
    batch_first=st.booleans(),
    bias=st.booleans(),
    add_bias_kv=st.booleans(),
    add_zero_attn=st.booleans(),
    kdim=st.sampled_from([None, 2]),
    vdim=st.sampled_from([None, 5]),
    need_weights=st.booleans(),
    average=st.booleans(),
    attn_mask=st.sampled_from([None, "all", "each head"]),
    padding=st.booleans(),
    floating=st.booleans(),
)
def test_multihead_equals_torch(
    heads: int,
    head_dim: int,
    batch: int | None,
    batch_first: bool,
    bias: bool,
    add_bias_kv: bool,
    add_zero_attn: bool,
    kdim: int | None,
    vdim: int | None,
    need_weights: bool,
    average: bool,
    attn_mask: str | None,
    padding: bool,
    floating: bool,
    device: torch.device,
) -> None:
    """Results, weights and both derivatives are torch's, for all options, masks and orders of dimensions."""
    size = heads * head_dim
    p, module = pair(
        device,
        size,
        heads,
        bias=bias,
        add_bias_kv=add_bias_kv,
        add_zero_attn=add_zero_attn,
        kdim=kdim,
        vdim=vdim,
        batch_first=batch_first,
    )
    inputs = [
        shaped(batch, length, features or size, batch_first, seed, device)
        for seed, (length, features) in enumerate([(3, size), (4, kdim), (4, vdim)])
    ]
    options: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": average}
    leading = {None: None, "all": (), "each head": ((batch or 1) * heads,)}[attn_mask]
    if leading is not None:
        options["attn_mask"] = chosen(*leading, 3, 4, share=0.4, device=device)
    if padding:
        options["key_padding_mask"] = chosen(*(() if batch is None else (batch,)), 4, share=0.3, seed=1, device=device)
    if floating:
        for name in ("attn_mask", "key_padding_mask"):
            if name in options:
                added = numbers(*options[name].shape, seed=5, device=device)
                options[name] = added.masked_fill(options[name], -math.inf)
    check_equals_module(p, layers.multihead_attention, module, *inputs, second_order=need_weights, **options)


@pytest.mark.parametrize("sharing", ["query, keys and values", "keys and values"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_shared_inputs(sharing: str, batch_first: bool, need_weights: bool, device: torch.device) -> None:
    """Inputs that are one tensor have one product; gradients add up; and they may be left out."""
    p, module = pair(device, 6, 2, batch_first=batch_first)
    p = filled(p, module)
    x = shaped(2, 3, 6, batch_first, 1, device).requires_grad_()
    memory = x if sharing.startswith("query") else shaped(2, 4, 6, batch_first, 2, device).requires_grad_()
    ours = layers.multihead_attention(p, x, *([] if memory is x else [memory]), need_weights=need_weights)
    same(ours, module(x, memory, memory, need_weights=need_weights))
    same(ours, layers.multihead_attention(p, x, memory, memory.clone(), need_weights=need_weights))
    of = (x,) if memory is x else (x, memory)
    found = torch.autograd.grad(torch.sin(ours[0]).sum(), of)
    same(found, torch.autograd.grad(torch.sin(module(x, memory, memory)[0]).sum(), of))


def test_second_derivatives_without_weights(device: torch.device) -> None:
    """The fast way has second derivatives, which are those of torch's slow one."""
    p, module = pair(device, 6, 2, batch_first=True)
    x = numbers(2, 4, 6, device=device)
    mask = chosen(4, 4, share=0.3, device=device)

    def total(apply: Callable[..., Any], of: list[Tensor]) -> Any:
        loss = torch.sin(apply(of[0])[0]).sum()
        found = torch.autograd.grad(loss, of, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in found), of)

    p = filled(p, module)
    given_ = x.requires_grad_()
    fast = total(
        lambda x: layers.multihead_attention(p, x, attn_mask=mask, need_weights=False), [given_, *pn.tree.leaves(p)]
    )
    with sdpa_kernel(SDPBackend.MATH):
        slow = total(lambda x: module(x, x, x, attn_mask=mask, need_weights=False), [given_, *module.parameters()])
    same(fast, slow)


def test_names_and_parameters(device: torch.device) -> None:
    """Paths are the keys of torch's state dict, in its order; first values have torch's distributions."""
    for options in (
        {},
        {"bias": False},
        {"kdim": 3, "vdim": 5},
        {"add_bias_kv": True},
        {"kdim": 3, "add_bias_kv": True},
    ):
        p = layers.MultiheadAttention.init(key(device), 8, 2, **options)
        state = nn.MultiheadAttention(8, 2, **options).state_dict()
        assert [(n, v.shape) for n, v in pn.tree.named_leaves(p)] == [(n, v.shape) for n, v in state.items()]
        assert (p.embed_dim, p.head_dim, p.kdim, p.vdim) == (8, 4, options.get("kdim", 8), options.get("vdim", 8))
    p = layers.MultiheadAttention.init(key(device), 64, 4, add_bias_kv=True)
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert 0.95 * bound < p.in_proj_weight.abs().max() <= bound
    assert 0.95 / 8 < p.out_proj.weight.abs().max() <= 1 / 8
    assert abs(p.bias_k.std() * 8 - 1) < 0.3
    assert not p.in_proj_bias.any()
    assert not p.out_proj.bias.any()
    assert not torch.equal(p.bias_k, p.bias_v)
    assert pn.tree.equal(p, layers.MultiheadAttention.init(key(device), 64, 4, add_bias_kv=True))


# What torch's layer does not do.


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
@pytest.mark.parametrize("floating", [True, False])
def test_causal_alone(need_weights: bool, extra: dict[str, bool], floating: bool, device: torch.device) -> None:
    """is_causal=True needs no mask and equals torch with one; together with other masks all of them hold."""
    p, module = pair(device, 6, 2, batch_first=True, **extra)
    x = numbers(2, 4, 6, device=device)
    padding = chosen(2, 4, share=0.4, seed=3, device=device)
    padding[:, 0] = False
    padding = torch.zeros(2, 4, dtype=torch.float64, device=device).masked_fill(padding, -9.0) if floating else padding
    causal = ~ops.causal_mask(4, device=device)
    for masks in ({}, {"key_padding_mask": padding}):
        ours = layers.multihead_attention(p := filled(p, module), x, is_causal=True, need_weights=need_weights, **masks)
        if floating:
            theirs_mask = torch.zeros(4, 4, dtype=torch.float64, device=device).masked_fill(causal, -math.inf)
        else:
            theirs_mask = causal
        same(ours, module(x, x, x, attn_mask=theirs_mask, need_weights=need_weights, **masks))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("floating", [True, False])
def test_masks_for_each_example(heads: int, batch: int, floating: bool, device: torch.device) -> None:
    """Masks for each example and for each head of it mean what their shapes say, also if batch and heads are equal."""
    p, module = pair(device, 8, heads, batch_first=True)
    p, x = filled(p, module), numbers(batch, 3, 8, device=device)
    each = chosen(batch, 3, 3, share=0.5, device=device)
    per_head = chosen(batch, heads, 3, 3, share=0.5, seed=1, device=device)
    if floating:
        each, per_head = (numbers(*mask.shape, seed=2, device=device) * mask for mask in (each, per_head))
    one_by_one = [layers.multihead_attention(p, x[i], attn_mask=each[i]) for i in range(batch)]
    got = layers.multihead_attention(p, x, attn_mask=each)
    same(got, tuple(torch.stack(parts) for parts in zip(*one_by_one, strict=True)))
    same(got, layers.multihead_attention(p, x, attn_mask=each[:, None]))
    same(got, module(x, x, x, attn_mask=each.repeat_interleave(heads, 0)))
    expected = module(x, x, x, attn_mask=per_head.flatten(0, 1))
    for mask in (per_head, per_head.flatten(0, 1)):
        same(layers.multihead_attention(p, x, attn_mask=mask), expected)
    for mask in (each[:1], each[:1, None], per_head[:1], per_head[:, :1]):
        full = mask.reshape(mask.shape[0], -1, 3, 3).expand(batch, heads, 3, 3)
        same(layers.multihead_attention(p, x, attn_mask=mask), layers.multihead_attention(p, x, attn_mask=full))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("how", ["attn_mask", "key_padding_mask", "both", "floating"])
def test_fully_masked_rows(need_weights: bool, how: str, device: torch.device) -> None:
    """Where everything is masked the weights are 0, the result is the bias, and no gradient is NaN."""
    p, module = pair(device, 6, 2, batch_first=True)
    p, x = filled(p, module), numbers(2, 3, 6, device=device).requires_grad_()
    rows = torch.zeros(3, 3, dtype=torch.bool, device=device)
    rows[1] = True
    masks: dict[str, Any] = {"attn_mask": rows} if how != "key_padding_mask" else {}
    if how == "floating":
        masks["attn_mask"] = torch.zeros(3, 3, dtype=torch.float64, device=device).masked_fill(rows, -math.inf)
    if how in ("key_padding_mask", "both"):
        masks["key_padding_mask"] = torch.tensor([[True] * 3, [False] * 3], device=device)
    dead = (slice(None), 1) if how in ("attn_mask", "floating") else (0,)
    y, weights = layers.multihead_attention(p, x, need_weights=need_weights, **masks)
    assert torch.equal(y[dead], p.out_proj.bias.expand_as(y[dead]))
    assert y.isfinite().all()
    if weights is not None:
        assert not weights[dead].any()
    found = torch.autograd.grad(y.square().sum(), [x, *pn.tree.leaves(p)], create_graph=True)
    assert all(g.isfinite().all() for g in found)
    second = torch.autograd.grad(sum(g.square().sum() for g in found), [x, *pn.tree.leaves(p)])
    assert all(g.isfinite().all() for g in second)
    batched = vmap(grad(lambda x: layers.multihead_attention(p, x[None], attn_mask=rows)[0].square().sum()))(x)
    assert batched.isfinite().all()


def test_masks_of_both_kinds_together(device: torch.device) -> None:
    """A boolean and a floating mask may be given together; torch deprecates that and does the same."""
    p, module = pair(device, 6, 2, batch_first=True)
    p, x = filled(p, module), numbers(2, 3, 6, device=device)
    padding, added = chosen(2, 3, share=0.5, device=device), numbers(3, 3, device=device)
    with pytest.warns(UserWarning, match="mismatched key_padding_mask"):
        expected = module(x, x, x, key_padding_mask=padding, attn_mask=added)
    same(layers.multihead_attention(p, x, key_padding_mask=padding, attn_mask=added), expected)


def test_dropout(device: torch.device) -> None:
    """A key drops weights at the rate and scales the others; without one the layer is deterministic."""
    p = layers.MultiheadAttention.init(key(device), 8, 2, dropout=0.25, batch_first=True, dtype=torch.float64)
    x = numbers(4, 30, 8, device=device)
    y, weights = layers.multihead_attention(p, x, average_attn_weights=False)
    z, dropped = layers.multihead_attention(p, x, average_attn_weights=False, key=key(device, 1))
    kept = dropped != 0
    assert abs(kept.double().mean() - 0.75) < 0.03
    same(dropped[kept], weights[kept] / 0.75)
    same(layers.multihead_attention(p, x, need_weights=False, key=key(device, 1))[0], z)
    assert not torch.equal(y, z)
    same(layers.multihead_attention(p, x, need_weights=False)[0], y)
    several = vmap(lambda key: layers.multihead_attention(p, x, key=key)[0])(pn.random.split(key(device), 2))
    assert not torch.equal(several[0], several[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("need_weights", [True, False])
def test_half_precision(dtype: torch.dtype, need_weights: bool, device: torch.device) -> None:
    """Half precision keeps its dtype and is right to its rounding."""
    p = layers.MultiheadAttention.init(key(device), 8, 2, batch_first=True, dtype=torch.float64)
    x, mask = numbers(2, 5, 8, device=device), chosen(5, 5, share=0.3, device=device)
    y, _ = layers.multihead_attention(p, x, attn_mask=mask)
    z, weights = layers.multihead_attention(
        pn.tree.to(p, dtype), x.to(dtype), attn_mask=mask, need_weights=need_weights
    )
    assert z.dtype == dtype
    assert weights is None or weights.dtype == dtype
    torch.testing.assert_close(z.double(), y, rtol=0.05, atol=0.05)


def test_meta(device: torch.device) -> None:
    """On the meta device nothing is drawn, and shapes come out."""
    p = layers.MultiheadAttention.init(key(device), 1024, 16, add_bias_kv=True, device="meta", dtype=torch.bfloat16)
    assert all(leaf.is_meta and leaf.dtype == torch.bfloat16 for leaf in pn.tree.leaves(p))
    y, weights = layers.multihead_attention(p, torch.empty(5, 3, 1024, device="meta", dtype=torch.bfloat16))
    assert (y.shape, weights.shape) == ((5, 3, 1024), (3, 5, 6))
    assert layers.SelfAttention.init(key(device), 9, device="meta").query.weight.is_meta


# One head.


@given(batch=st.sampled_from([(), (2,), (2, 3)]), is_causal=st.booleans(), bias=st.booleans(), masked=st.booleans())
def test_self_attention(
    batch: tuple[int, ...], is_causal: bool, bias: bool, masked: bool, device: torch.device
) -> None:
    """A single head is torch's scaled dot-product attention of the three maps of the input, and no more."""
    p = layers.SelfAttention.init(key(device), 5, bias=bias, dtype=torch.float64)
    assert [name for name, _ in pn.tree.named_leaves(p)][:: 2 if bias else 1] == [
        "query.weight",
        "key.weight",
        "value.weight",
    ]
    x = numbers(*batch, 4, 5, device=device)
    mask = ~chosen(4, 4, share=0.4, device=device) if masked and not is_causal else None
    q, k, v = (F.linear(x, part.weight, part.bias) for part in (p.query, p.key, p.value))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=5**-0.5)
    same(layers.self_attention(p, x, mask=mask, is_causal=is_causal), expected)


def test_attention_in_a_module(device: torch.device) -> None:
    """Carried by a module, attention has the same names, result and dropout only in training mode."""
    p, _ = pair(device, 6, 2, batch_first=True, dropout=0.5)
    x = numbers(2, 3, 6, device=device)
    module = bridge.to_module(p)
    assert list(module.state_dict()) == [name for name, _ in pn.tree.named_leaves(p)]
    same(module.eval()(x), layers.multihead_attention(p, x))
    torch.manual_seed(0)
    first = module.train()(x)[0]
    torch.manual_seed(0)
    assert torch.equal(module(x)[0], first)
    assert not torch.equal(module(x)[0], first)


# All of them.


def attention(seed: int, **options: Any) -> layers.MultiheadAttention:
    """A model for the shared table."""
    p = layers.MultiheadAttention.init(pn.random.key(seed), 6, 2, dtype=torch.float64, **options)
    leaves = [numbers(*leaf.shape, seed=seed + 7 * i) / 2 for i, leaf in enumerate(pn.tree.leaves(p))]
    names = iter(leaves)
    return pn.tree.map(lambda _: next(names), p)


TABLE: dict[str, tuple[Callable[[int], Any], Callable[..., Tensor], tuple[int, ...]]] = {
    "with weights": (
        lambda seed: attention(seed),
        lambda p, x: torch.cat([part.flatten() for part in layers.multihead_attention(p, x)]),
        (3, 2, 6),
    ),
    "without": (
        lambda seed: attention(seed, batch_first=True),
        lambda p, x: layers.multihead_attention(p, x, need_weights=False)[0],
        (2, 3, 6),
    ),
    "causal, one example": (
        lambda seed: attention(seed),
        lambda p, x: layers.multihead_attention(p, x, is_causal=True, need_weights=False)[0],
        (3, 6),
    ),
    "extra keys, other sizes": (
        lambda seed: attention(seed, kdim=4, vdim=3, add_bias_kv=True, add_zero_attn=True, batch_first=True),
        lambda p, x: layers.multihead_attention(p, x, x[..., :4], x[..., :3], is_causal=True)[0],
        (2, 3, 6),
    ),
    "padding": (
        lambda seed: {"p": attention(seed, batch_first=True), "mask": torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()},
        lambda p, x: layers.multihead_attention(p["p"], x, key_padding_mask=p["mask"], need_weights=False)[0],
        (2, 3, 6),
    ),
    "one head": (
        lambda seed: layers.SelfAttention.init(pn.random.key(seed), 6, dtype=torch.float64),
        lambda p, x: layers.self_attention(p, x, is_causal=True),
        (2, 3, 6),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_transformations(name: str, device: torch.device) -> None:
    """Every form keeps the promises of the shared table."""
    make, function, shape = TABLE[name]
    check_transformations(lambda seed: pn.tree.to(make(seed), device), function, numbers(2, *shape, device=device))


@pytest.mark.parametrize("need_weights", [True, False])
def test_purity_with_masks_and_keys(need_weights: bool, device: torch.device) -> None:
    """Masks and keys are arguments like others: none is changed, and the same ones give the same result."""
    p = layers.MultiheadAttention.init(key(device), 6, 2, dropout=0.5, dtype=torch.float64)
    x, mask = numbers(3, 2, 6, device=device), chosen(3, 3, share=0.5, device=device)
    padding = chosen(2, 3, share=0.5, device=device)
    check_purity(
        lambda p, x, *rest: [
            part
            for part in layers.multihead_attention(
                p, x, attn_mask=rest[0], key_padding_mask=rest[1], key=rest[2], need_weights=need_weights
            )
            if part is not None
        ],
        *(p, x, mask, padding, key(device)),
    )


def test_repr(device: torch.device) -> None:
    """Attention prints its sizes, and the options that differ from their defaults."""
    p = layers.MultiheadAttention.init(key(device), 6, 2, dropout=0.1, kdim=3, bias=False, batch_first=True)
    assert repr(p).splitlines()[0] == (
        "MultiheadAttention(embed_dim=6, num_heads=2, kdim=3, vdim=6, bias=False, dropout=0.1, batch_first=True"
    )


KEY = pn.random.key(0)
P = layers.MultiheadAttention.init(KEY, 6, 2)
FIRST = layers.MultiheadAttention.init(KEY, 6, 2, batch_first=True)
X = torch.zeros(3, 5, 6)
SHAPES = "multihead_attention: attn_mask must have one of the shapes "
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: layers.MultiheadAttention.init(KEY, 10, 3),
        pn.errors.ArgumentError,
        "MultiheadAttention.init: embed_dim must be a positive multiple of num_heads, so that all heads have the same "
        "size, got embed_dim=10 and num_heads=3.",
    ),
    (
        lambda: layers.MultiheadAttention.init(KEY, 10, 0),
        pn.errors.ArgumentError,
        "MultiheadAttention.init: embed_dim must be a positive multiple of num_heads, so that all heads have the same "
        "size, got embed_dim=10 and num_heads=0.",
    ),
    (
        lambda: layers.MultiheadAttention.init(KEY, 10, 2, dropout=-1.0),
        pn.errors.ArgumentError,
        "MultiheadAttention.init: dropout is the probability of a zero and must be from 0 to 1, got -1.0.",
    ),
    (
        lambda: layers.multihead_attention(P, torch.zeros(3, 5, 7)),
        pn.errors.ShapeError,
        "multihead_attention: expected query [target, batch, 6], keys [source, batch, 6] and values [source, batch, "
        "6], all three with or all three without batch, got [3, 5, 7], [3, 5, 7] and [3, 5, 7]. The order of the "
        "dimensions is that of batch_first=False.",
    ),
    (
        lambda: layers.multihead_attention(FIRST, X, torch.zeros(2, 5, 6)),
        pn.errors.ShapeError,
        "multihead_attention: expected query [batch, target, 6], keys [batch, source, 6] and values [batch, source, "
        "6], all three with or all three without batch, got [3, 5, 6], [2, 5, 6] and [2, 5, 6]. The order of the "
        "dimensions is that of batch_first=True.",
    ),
    (
        lambda: layers.multihead_attention(FIRST, X, attn_mask=torch.zeros(4, 5, 5)),
        pn.errors.ShapeError,
        SHAPES + "[5, 5] for all, [3, 5, 5] for each example, [3, 2, 5, 5] or [6, 5, 5] for each head of each "
        "example, got [4, 5, 5].",
    ),
    (
        lambda: layers.multihead_attention(FIRST, X, attn_mask=torch.zeros(2, 5, 5)),
        pn.errors.ShapeError,
        SHAPES + "[5, 5] for all, [3, 5, 5] for each example, [3, 2, 5, 5] or [6, 5, 5] for each head of each "
        "example, got [2, 5, 5].",
    ),
    (
        lambda: layers.multihead_attention(FIRST, X[0], attn_mask=torch.zeros(1, 5, 5)),
        pn.errors.ShapeError,
        SHAPES + "[5, 5] for all, or [2, 5, 5] for each head, got [1, 5, 5].",
    ),
    (
        lambda: layers.multihead_attention(P, X, key_padding_mask=torch.zeros(3, 5)),
        pn.errors.ShapeError,
        "multihead_attention: key_padding_mask must have the shape [5, 3], a number for every source position, got [3, "
        "5].",
    ),
    (
        lambda: layers.multihead_attention(P, X, key_padding_mask=torch.zeros(5, 3, dtype=torch.int64)),
        pn.errors.ArgumentError,
        "multihead_attention: key_padding_mask must be boolean (True is left out) or floating (added to the scores), "
        "got torch.int64. Write key_padding_mask.bool().",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    """What does not fit is refused with what was expected, what came, and what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_as_many_heads_as_examples(device: torch.device) -> None:
    """The published trap: with 2 examples and 2 heads a [2, t, s] mask belongs to the examples."""
    p = layers.MultiheadAttention.init(key(device), 4, 2, batch_first=True, dtype=torch.float64)
    x = numbers(2, 3, 4, device=device)
    mask = torch.zeros(2, 3, 3, dtype=torch.bool, device=device)
    mask[0, :, 2] = True
    _, weights = layers.multihead_attention(p, x, attn_mask=mask, average_attn_weights=False)
    for head, target in itertools.product(range(2), range(3)):
        assert weights[0, head, target, 2] == 0
        assert weights[1, head, target, 2] > 0
