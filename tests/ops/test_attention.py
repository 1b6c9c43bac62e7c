"""Attention: torch's own numbers, by the kernel and by the formula, in every derivative and under every mask."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _reference import numbers, same, weights_like
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import purenn as pn
from purenn import ops

attention = ops.scaled_dot_product_attention


def inputs(*batch: int, queries: int = 3, keys: int = 5, features: int = 4, device: torch.device) -> tuple:
    """Queries, keys and values in float64."""
    q = numbers(*batch, queries, features, seed=1, device=device)
    k, v = (numbers(*batch, keys, features, seed=seed, device=device) for seed in (2, 3))
    return q, k, v


def by_definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """The formula, row by row, with zeros where nothing takes part; the mask is additive."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if mask is None else scores + mask
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True).clamp_min(-1e300))
    return exponentials / exponentials.sum(-1, keepdim=True).clamp_min(1e-300) @ v


def chosen(*shape: int, share: float, seed: int = 0, device: torch.device) -> Tensor:
    """A boolean mask, True in about that share of its places."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share).to(device)


def additive(mask: Tensor) -> Tensor:
    """The additive form of a boolean mask."""
    return torch.zeros(mask.shape, dtype=torch.float64, device=mask.device).masked_fill(~mask, -math.inf)


@given(
    batch=st.sampled_from([(), (2,), (2, 3), (2, 1, 3), (2, 2, 1, 2)]),
    queries=st.integers(1, 5),
    keys=st.integers(1, 5),
    is_causal=st.booleans(),
    scale=st.sampled_from([None, 0.3, 1.0]),
    kind=st.sampled_from([None, "boolean", "floating", "both"]),
    rank=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_value_and_gradients(
    batch: tuple[int, ...],
    queries: int,
    keys: int,
    is_causal: bool,
    scale: float | None,
    kind: str | None,
    rank: int,
    seed: int,
    device: torch.device,
) -> None:
    """For any leading dimensions and masks the value, the gradients and the gradients' gradients are the definition's.

    Rows without a key are among them: their results and gradients are zero.
    """
    q, k, v = inputs(*batch, queries=queries, keys=keys, device=device)
    mask = total = None
    if kind is not None:
        shape = (*batch, queries, keys)[-rank:]
        mask = chosen(*shape, share=0.6, seed=seed, device=device)
        total = additive(mask)
        if kind != "boolean":
            mask = total = total + numbers(*shape, seed=seed, device=device) * (0 if kind == "both" else 1)
    if is_causal:
        causal = additive(torch.ones(queries, keys, dtype=torch.bool, device=device).tril())
        total = causal if total is None else total + causal
    given_ = [x.requires_grad_() for x in (q, k, v)]
    y = attention(*given_, mask=mask, is_causal=is_causal, scale=scale)
    expected = by_definition(*given_, mask=total, scale=scale)
    same(y, expected)
    same(gradients(y, given_, again=False), gradients(expected, given_, again=False))
    y = attention(*given_, mask=mask, is_causal=is_causal, scale=scale)
    same(gradients(y, given_, again=True), gradients(expected, given_, again=True))
    same(ops.attention_weights(q, k, mask=mask, is_causal=is_causal, scale=scale) @ v, expected)


def gradients(y: Tensor, of: list[Tensor], *, again: bool) -> tuple[Tensor, ...]:
    """First gradients, or the gradients of a sum of them."""
    loss = (torch.sin(y) * weights_like(y)).sum()
    found = torch.autograd.grad(loss, of, create_graph=again, retain_graph=True)
    if not again:
        return found
    return torch.autograd.grad(sum((g * weights_like(g)).sum() for g in found), of, retain_graph=True)


@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_torch(is_causal: bool, device: torch.device) -> None:
    """Value and gradients are those of torch's function, with its convention of boolean masks, and of a view's too."""
    q, k, v = (x.requires_grad_() for x in inputs(2, 3, queries=5, device=device))
    mask = None if is_causal else chosen(2, 1, 5, 5, share=0.9, device=device)
    ours = attention(q, k, v, mask=mask, is_causal=is_causal)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    alive = torch.ones(()) if mask is None else mask.any(-1, keepdim=True)
    same(ours, theirs * alive)
    same(torch.autograd.grad(ours.sum(), (q, k, v)), torch.autograd.grad((theirs * alive).sum(), (q, k, v)))


@given(groups=st.integers(1, 3), heads=st.integers(1, 3), batch=st.sampled_from([(), (2,), (2, 2)]))
def test_grouped_heads(groups: int, heads: int, batch: tuple[int, ...], device: torch.device) -> None:
    """Shared keys and values give what repeated ones give, in value and both derivatives."""
    q, _, _ = inputs(*batch, groups * heads, device=device)
    _, k, v = inputs(*batch, heads, device=device)
    mask = chosen(*batch, groups * heads, 3, 5, share=0.7, device=device)
    given_ = [x.requires_grad_() for x in (q, k, v)]
    y = attention(*given_, mask=mask, enable_gqa=True)
    repeated = [x.repeat_interleave(groups, -3) for x in (k, v)]
    expected = by_definition(q, *repeated, mask=additive(mask))
    same(y, expected)
    for again in (False, True):
        same(gradients(y, given_, again=again), gradients(expected, given_, again=again))
    weights = ops.attention_weights(q, k, mask=mask, enable_gqa=True)
    same(weights @ repeated[1], expected)


def test_kernel_and_formula_agree(device: torch.device) -> None:
    """What runs plainly and what is forced to the formula are equal, also if all inputs are one tensor."""
    x = numbers(2, 3, 6, 4, device=device).requires_grad_()
    for options in ({}, {"is_causal": True}, {"mask": chosen(6, 6, share=0.7, device=device)}):
        y = attention(x, x, x, **options)
        with sdpa_kernel(SDPBackend.MATH):
            other = attention(x, x, x, **options)
        same(y, other)
        same(gradients(y, [x], again=False), gradients(other, [x], again=False))
        same(gradients(y, [x], again=True), gradients(other, [x], again=True))


def test_first_derivatives_keep_no_square(device: torch.device) -> None:
    """Outside transformations nothing of size queries x keys is kept for the backward pass."""
    q, k, v = (x.requires_grad_() for x in inputs(1, 1, queries=64, keys=64, device=device))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        attention(q.float(), k.float(), v.float(), is_causal=True)
    assert max(kept) <= 64 * 4


@pytest.mark.parametrize("form", ["boolean", "floating"])
def test_rows_without_keys_are_zero(form: str, device: torch.device) -> None:
    """A query that sees nothing gets exact zeros and gives exact zeros in all gradients, never NaN."""
    q, k, v = (x.requires_grad_() for x in inputs(2, device=device))
    mask = torch.ones(2, 3, 5, dtype=torch.bool, device=device)
    mask[0, 1] = False
    given_ = mask if form == "boolean" else additive(mask)
    y = attention(q, k, v, mask=given_)
    assert torch.equal(y[0, 1], torch.zeros_like(y[0, 1]))
    weights = ops.attention_weights(q, k, mask=given_)
    same(weights.sum(-1), mask.any(-1).double())
    for value in (y, weights):
        found = torch.autograd.grad(value.square().sum(), (q, k, v), create_graph=True, allow_unused=True)
        assert torch.equal(found[0][0, 1], torch.zeros(4, dtype=torch.float64, device=device))
        assert all(g is None or g.isfinite().all() for g in found)
        second = torch.autograd.grad(sum(g.sum() for g in found if g is not None), (q, k), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in second)
    by_jvp = jvp(lambda q: attention(q, k, v, mask=given_), (q,), (q,))[1]
    assert by_jvp.isfinite().all()


def test_mask_is_differentiable(device: torch.device) -> None:
    """A floating mask may be learned; -inf in it has gradient 0."""
    q, k, v = inputs(2, device=device)
    mask = numbers(3, 5, seed=7, device=device)
    mask[0, 2], mask[1] = -math.inf, -math.inf
    mask.requires_grad_()
    (found,) = torch.autograd.grad(attention(q, k, v, mask=mask).square().sum(), mask)
    same(found, grad(lambda mask: attention(q, k, v, mask=mask).square().sum())(mask.detach()))
    assert torch.equal(found.isfinite(), torch.ones_like(found, dtype=torch.bool))
    assert (found[0, 2], found[1].abs().max()) == (0, 0)
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
@pytest.mark.parametrize("mask", ["none", "causal", "some", "empty row", "added"])
def test_transformations(batch: tuple[int, ...], mask: str, device: torch.device) -> None:
    """Attention keeps the promises of the shared table."""
    row = torch.tensor([[1, 1, 0], [0, 1, 1], [int(mask != "empty row"), 0, 0]], device=device).bool()
    masks = {"some": row, "empty row": row, "added": numbers(3, 3, device=device)}

    def make(seed: int) -> dict[str, Tensor]:
        p = {name: numbers(*batch, 3, 4, seed=seed + 10 * ord(name), device=device) for name in "kv"}
        return {**p, "mask": masks[mask]} if mask in masks else p

    check_transformations(
        make,
        lambda p, q: attention(q, p["k"], p["v"], mask=p.get("mask"), is_causal=mask == "causal"),
        numbers(3, *batch, 3, 4, device=device),
        compile=batch == (2,),
    )


def test_grouped_heads_under_transformations(device: torch.device) -> None:
    """So does attention with shared keys."""
    check_transformations(
        lambda seed: {name: numbers(2, 3, 4, seed=seed + ord(name), device=device) for name in "kv"},
        lambda p, q: attention(q, p["k"], p["v"], enable_gqa=True, is_causal=True),
        numbers(3, 4, 3, 4, device=device),
    )


def test_masks_may_be_batched(device: torch.device) -> None:
    """Under vmap each example may have its own mask."""
    q, k, v = inputs(4, device=device)
    masks = chosen(4, 3, 5, share=0.5, device=device)
    got = vmap(lambda q, k, v, mask: attention(q, k, v, mask=mask))(q, k, v, masks)
    same(got, attention(q, k, v, mask=masks))


def test_batched_gradients_of_plain_autograd(device: torch.device) -> None:
    """torch.autograd.grad may batch its cotangents and may run backward several times."""
    q, k, v = (x.requires_grad_() for x in inputs(2, device=device))
    y = attention(q, k, v)
    cotangents = numbers(3, *y.shape, device=device)
    got = torch.autograd.grad(y, (q, k, v), cotangents, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, (q, k, v), c, retain_graph=True) for c in cotangents]
    same(got, tuple(torch.stack(same_) for same_ in zip(*one_by_one, strict=True)))


def test_forward_mode_of_plain_autograd(device: torch.device) -> None:
    """Dual numbers pass through, without torch.func."""
    q, k, v = inputs(2, device=device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, k[:, :3])
        tangent = torch.autograd.forward_ad.unpack_dual(attention(dual, k, v)).tangent
    same(tangent, jvp(lambda q: attention(q, k, v), (q,), (k[:, :3],))[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Half precision is right to its own rounding, by both ways, also for large scores; the dtype stays."""
    q, k, v = (x.to(dtype) for x in inputs(2, 2, features=16, device=device))
    for scale in (None, 20.0):
        expected = by_definition(q.double(), k.double(), v.double(), scale=scale)
        with sdpa_kernel(SDPBackend.MATH):
            formula = attention(q, k, v, scale=scale)
        for y in (attention(q, k, v, scale=scale), formula):
            assert y.dtype == dtype
            tolerance = 0.02 if scale is None else 0.3
            torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    assert ops.attention_weights(q, k).dtype == dtype


def test_dropout(device: torch.device) -> None:
    """A key drops weights: zeros at the rate, the others scaled, the mean kept; without a key nothing is dropped."""
    q, k, v = inputs(20, queries=40, keys=40, device=device)
    key = pn.random.key(3, device=device)
    weights = ops.attention_weights(q, k)
    dropped = ops.attention_weights(q, k, dropout=0.25, key=key)
    kept = dropped != 0
    assert abs(kept.double().mean() - 0.75) < 0.02
    same(dropped[kept], weights[kept] / 0.75)
    same(attention(q, k, v, dropout=0.25, key=key), dropped @ v)
    assert torch.equal(attention(q, k, v, dropout=0.25), attention(q, k, v))
    assert torch.equal(attention(q, k, v, dropout=1.0, key=key), torch.zeros_like(q))
    keys = pn.random.split(key, 2)
    several = vmap(lambda key: attention(q, k, v, dropout=0.25, key=key))(keys)
    assert torch.equal(several[0], attention(q, k, v, dropout=0.25, key=keys[0]))
    assert not torch.equal(several[0], several[1])


def test_no_keys_and_no_queries(device: torch.device) -> None:
    """Without keys the result is zero, without queries or examples it is empty."""
    for shape, keys in itertools.product([(2, 3), (0, 3), (2, 0)], [0, 4]):
        q, k, v = inputs(shape[0], queries=shape[1], keys=keys, device=device)
        y = attention(q, k, v)
        assert y.shape == q.shape
        assert keys or not y.any()


def test_masks(device: torch.device) -> None:
    """The mask helpers are what their sentences say, also for a chunk of queries in the middle."""
    for queries, keys, offset, window in itertools.product([1, 4], [1, 5], [0, 2], [1, 3]):
        i = torch.arange(queries, device=device)[:, None] + offset
        j = torch.arange(keys, device=device)
        options: dict[str, Any] = {"offset": offset, "device": device}
        assert torch.equal(ops.causal_mask(queries, keys, **options), j <= i)
        both = ops.sliding_window_mask(queries, keys, window=window, causal=False, **options)
        assert torch.equal(both, (i - j).abs() < window)
        assert torch.equal(ops.sliding_window_mask(queries, keys, window=window, **options), both & (j <= i))
    assert torch.equal(ops.causal_mask(3, device=device), torch.ones(3, 3, device=device).tril().bool())


X = torch.zeros(2, 3, 4)
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: attention(X, torch.zeros(2, 3, 5), X),
        ValueError,
        "scaled_dot_product_attention: expected q [*batch, queries, features], k [*batch, keys, features] and v "
        "[*batch, keys, values], got q [2, 3, 4], k [2, 3, 5], v [2, 3, 4]. If q has a multiple of the heads of k and "
        "v, set enable_gqa=True.",
    ),
    (
        lambda: attention(torch.zeros(4, 3, 4), X, X),
        ValueError,
        "scaled_dot_product_attention: expected q [*batch, queries, features], k [*batch, keys, features] and v "
        "[*batch, keys, values], got q [4, 3, 4], k [2, 3, 4], v [2, 3, 4]. If q has a multiple of the heads of k and "
        "v, set enable_gqa=True.",
    ),
    (
        lambda: attention(torch.zeros(3, 3, 4), X, X, enable_gqa=True),
        ValueError,
        "scaled_dot_product_attention: expected q [*batch, queries, features], k [*batch, keys, features] and v "
        "[*batch, keys, values], got q [3, 3, 4], k [2, 3, 4], v [2, 3, 4]. The heads of q must be a multiple of those "
        "of k and v.",
    ),
    (
        lambda: attention(X[0, 0], X, X),
        ValueError,
        "scaled_dot_product_attention: expected q [*batch, queries, features], k [*batch, keys, features] and v "
        "[*batch, keys, values], got q [4], k [2, 3, 4], v [2, 3, 4]. If q has a multiple of the heads of k and v, set "
        "enable_gqa=True.",
    ),
    (
        lambda: attention(X, X, X, mask=torch.zeros(2, 2, 3, dtype=torch.bool)),
        ValueError,
        "scaled_dot_product_attention: the mask must broadcast to [2, 3, 3], [*batch, queries, keys], got shape [2, 2, "
        "3]. Give it dimensions of size 1 where it does not depend on an index.",
    ),
    (
        lambda: ops.attention_weights(X, X, mask=torch.zeros(1, 1, 3, 3)),
        ValueError,
        "attention_weights: the mask must broadcast to [2, 3, 3], [*batch, queries, keys], got shape [1, 1, 3, 3]. "
        "Give it dimensions of size 1 where it does not depend on an index.",
    ),
    (
        lambda: attention(X, X, X, mask=torch.ones(3, 3, dtype=torch.int64)),
        ValueError,
        "scaled_dot_product_attention: mask must be boolean (True takes part) or floating (added to the scores), got "
        "torch.int64. Write mask.bool().",
    ),
    (
        lambda: attention(X, X, X, dropout=1.5),
        ValueError,
        "scaled_dot_product_attention: dropout is the probability of a zero and must be from 0 to 1, got 1.5.",
    ),
    (
        lambda: attention(X.to("meta"), X.to("meta"), X.to("meta"), dropout=0.5, key=pn.random.key(0)),
        ValueError,
        "scaled_dot_product_attention: the key is on cpu and q on meta; write key.to(q.device).",
    ),
    (
        lambda: ops.sliding_window_mask(3, window=0),
        ValueError,
        "sliding_window_mask: window must be at least 1, a query's own position, got 0.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    """What does not fit is refused with what was expected, what came, and what to do."""
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, pn.errors.PurennError)
    assert str(caught.value) == text
