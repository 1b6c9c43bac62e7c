"""Scaled dot-product attention that can be batched and differentiated any number of times.

torch's fused kernels run where operations run at once on their own data; whatever is transformed or traced goes by the
formula ``softmax(q k^T scale) v``. Either way a query that may look at no key at all gets zeros, and zero gradients.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from purenn import random
from purenn._modes import is_plain
from purenn.errors import ArgumentError, DeviceError, ShapeError
from purenn.ops._attention_kernels import fused, product, weights
from purenn.ops._masks import both, causal_mask


def scaled_dot_product_attention(
    q: Float[Tensor, "... queries features"],
    k: Float[Tensor, "... keys features"],
    v: Float[Tensor, "... keys values"],
    *,
    mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Tensor | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "... queries values"]:
    """``softmax(q k^T scale + mask) v``: for every query the average of the values whose keys look like it.

    Args:
        q: the queries, with any leading dimensions; heads are the last of them.
        k: the keys, whose leading dimensions broadcast with those of `q`.
        v: the values, one for each key.
        mask: of a shape that broadcasts to ``[*batch, queries, keys]``. Boolean: **True takes part**, as in torch's
            function of this name and unlike `torch.nn.MultiheadAttention`. Floating: added to the scaled products.
        is_causal: whether query i sees the keys 0 to i only; together with a `mask` both hold. Default: False.
        scale: factor of the products. Default: ``1 / sqrt(features)``.
        dropout: probability with which a weight is set to 0, the others being divided by ``1 - dropout``.
        key: random key of the dropout; without one there is none.
        enable_gqa: whether `q` may have a multiple of the heads of `k` and `v` (dimension -3), each of which then
            serves that many neighbouring heads of `q`. Default: False.

    Returns:
        The result; half precision has its softmax in float32. A query all of whose keys are masked gets zeros.

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: `mask` is neither boolean nor floating, or `dropout` is no probability.
        DeviceError: `key` is on another device.

    Source:
        Vaswani et al.: Attention Is All You Need, 2017. Groups: Ainslie et al.: GQA, 2023.
    """
    if has_torch_function_variadic(q, k, v):
        options = {"mask": mask, "is_causal": is_causal, "scale": scale, "dropout": dropout, "key": key}
        return handle_torch_function(scaled_dot_product_attention, (q, k, v), q, k, v, **options, enable_gqa=enable_gqa)
    name = "scaled_dot_product_attention"
    batch, groups = _shapes(name, q, k, v, enable_gqa)
    mask, alive = _checked_mask(name, mask, is_causal, (*batch, q.shape[-2], k.shape[-2]))
    options = mask, is_causal and mask is None, _scale(q, scale)
    drops = _drops(name, q, dropout, key)
    out = None
    if not drops and is_plain(q, k, v, *(() if mask is None else (mask,))) and forward_ad._current_level < 0:
        out = fused(q, k, v, *options, batch, groups)
    if out is None:
        found = weights(q, k, *options, groups)
        out = product((_dropped(found, dropout, key) if drops else found).to(v.dtype), v, groups)
    return out if alive is None else torch.where(alive, out, 0)


def attention_weights(
    q: Float[Tensor, "... queries features"],
    k: Float[Tensor, "... keys features"],
    *,
    mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Tensor | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "... queries keys"]:
    """``softmax(q k^T scale + mask)``: the weights of `scaled_dot_product_attention`, with its arguments and errors.

    Before dropout they sum to 1 for every query, or are all 0 where all keys are masked.
    """
    name = "attention_weights"
    batch, groups = _shapes(name, q, k, k, enable_gqa)
    mask, alive = _checked_mask(name, mask, is_causal, (*batch, q.shape[-2], k.shape[-2]))
    found = weights(q, k, mask, is_causal and mask is None, _scale(q, scale), groups)
    if _drops(name, q, dropout, key):
        found = _dropped(found, dropout, key)
    return (found if alive is None else torch.where(alive, found, 0)).to(q.dtype)


def _scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _dropped(found: Tensor, dropout: float, key: Tensor | None) -> Tensor:
    assert key is not None
    if dropout == 1:
        return torch.zeros_like(found)
    return torch.where(random.bernoulli(key, found.shape, p=1 - dropout), found / (1 - dropout), 0.0)


def _drops(name: str, q: Tensor, dropout: float, key: Tensor | None) -> bool:
    if not 0 <= dropout <= 1:
        raise ArgumentError(f"{name}: dropout is the probability of a zero and must be from 0 to 1, got {dropout!r}.")
    if key is None or dropout == 0:
        return False
    if isinstance(key, Tensor) and key.device != q.device:  # other mistakes are for the draw to tell
        raise DeviceError(f"{name}: the key is on {key.device} and q on {q.device}; write key.to(q.device).")
    return True


def _shapes(name: str, q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> tuple[tuple[int, ...], int]:
    """The leading dimensions of the result, heads included, and how many heads of `q` share a head of `k`."""
    batch, groups = q.shape[:-2], 1
    fits = min(q.dim(), k.dim(), v.dim()) >= 2 and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    if fits and not batch == k.shape[:-2] == v.shape[:-2]:
        if enable_gqa and q.dim() > 2 and k.dim() > 2 and k.shape[-3] and q.shape[-3] % k.shape[-3] == 0:
            groups = q.shape[-3] // k.shape[-3]
        heads = 1 if groups > 1 else 0
        batches = [x.shape[: -2 - heads] for x in (q, k, v)]
        fits = _broadcast(batches) and (groups == 1 or (v.dim() > 2 and v.shape[-3] == k.shape[-3]))
        batch = (*torch.broadcast_shapes(*batches), *q.shape[-3:-2] * heads) if fits else batch
    if not fits:
        sizes = ", ".join(f"{letter} {list(x.shape)}" for letter, x in (("q", q), ("k", k), ("v", v)))
        hint = (
            "The heads of q must be a multiple of those of k and v."
            if enable_gqa
            else "If q has a multiple of the heads of k and v, set enable_gqa=True."
        )
        raise ShapeError(
            f"{name}: expected q [*batch, queries, features], k [*batch, keys, features] and v [*batch, keys, values], "
            f"got {sizes}. {hint}"
        )
    return batch, groups


def _broadcast(shapes: list[torch.Size]) -> bool:
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    return True


def _checked_mask(
    name: str, mask: Tensor | None, is_causal: bool, wanted: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The mask without its rows that let nothing through, and which rows those are not.

    Such a row lets everything through instead, which keeps the softmax finite; the caller zeroes its result, and with
    it all its gradients.
    """
    if mask is None:
        return None, None
    is_boolean = mask.dtype == torch.bool
    if not is_boolean and not mask.is_floating_point():
        raise ArgumentError(
            f"{name}: mask must be boolean (True takes part) or floating (added to the scores), got {mask.dtype}. "
            f"Write mask.bool()."
        )
    sizes = zip(reversed(mask.shape), reversed(wanted), strict=False)
    if mask.dim() > len(wanted) or any(size not in (1, other) for size, other in sizes):
        raise ShapeError(
            f"{name}: the mask must broadcast to {list(wanted)}, [*batch, queries, keys], got shape "
            f"{list(mask.shape)}. Give it dimensions of size 1 where it does not depend on an index."
        )
    if is_causal:
        mask = both(mask, causal_mask(*wanted[-2:], device=mask.device))
    alive = (mask if is_boolean else mask > -math.inf).any(-1, keepdim=True)
    return (mask | ~alive if is_boolean else torch.where(alive, mask, 0)), alive
