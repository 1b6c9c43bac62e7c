"""Attention of language models: heads in groups that share keys and values, and a cache of these for decoding.

`grouped_query_attention` takes whole sequences. `cached_attention` takes the next positions of sequences that it
continues, with the keys and values of the earlier ones in a `KeyValueCache`, and returns the cache that has grown by
them. The cache has a fixed size, so every step has the same shapes and is traced once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from purenn import ops, random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.linear import Linear, linear
from purenn.layers.position import RotaryEmbedding, rotary_embedding
from purenn.ops._masks import both
from purenn.tree import Layer, applies, buffer, container, replace, static


@container
class GroupedQueryAttention(Layer):
    """Self-attention in which several heads share keys and values; see `grouped_query_attention`.

    Attributes:
        q_proj: the map to queries, ``embed_dim`` to ``num_heads * head_dim``.
        k_proj: the map to keys, ``embed_dim`` to ``num_kv_heads * head_dim``.
        v_proj: the map to values, of the same sizes.
        o_proj: the map of what the heads have gathered, ``num_heads * head_dim`` to ``embed_dim``.
        rotary: turns queries and keys by their positions, or None.
        num_heads: number of heads.
        num_kv_heads: number of heads of keys and values; 1 is multi-query attention.
        causal: whether a position sees none after it. Default: True.
        window: how many positions it sees, its own among them; None for all.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    rotary: RotaryEmbedding | None
    num_heads: int = static()
    num_kv_heads: int = static()
    causal: bool = static(default=True)
    window: int | None = static(default=None)

    @classmethod
    def init(
        cls,
        key: Tensor,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
        causal: bool = True,
        window: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the four maps as `Linear.init` does.

        Args:
            key: random key.
            embed_dim: size of the input's last dimension, and of the result's.
            num_heads: number of heads.
            num_kv_heads: number of heads of keys and values, a divisor of `num_heads`. Default: `num_heads`.
            head_dim: size of a head. Default: ``embed_dim / num_heads``.
            rotary: such as ``RotaryEmbedding(head_dim)``. Default: None.
            bias: whether the maps have biases. Default: False.
            causal: whether a position sees none after it. Default: True.
            window: how many positions it sees, its own among them. Default: None, all.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: the numbers do not fit each other.
        """
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or kv_heads < 1 or num_heads % kv_heads:
            raise ArgumentError(
                f"GroupedQueryAttention.init: num_heads must be a multiple of num_kv_heads, so that all groups have "
                f"the same size, got num_heads={num_heads} and num_kv_heads={kv_heads}."
            )
        if head_dim is None and embed_dim % num_heads:
            raise ArgumentError(
                f"GroupedQueryAttention.init: embed_dim={embed_dim} is not a multiple of num_heads={num_heads}: choose "
                f"another number of heads, or set head_dim."
            )
        size = embed_dim // num_heads if head_dim is None else head_dim
        if rotary is not None and rotary.dim > size:
            raise ArgumentError(
                f"GroupedQueryAttention.init: rotary turns dim={rotary.dim} features, but a head has {size}: make it "
                f"RotaryEmbedding({size})."
            )
        if window is not None and window < 1:
            raise ArgumentError(
                f"GroupedQueryAttention.init: window must be at least 1, a position's own, or None for all, got "
                f"{window}."
            )
        of_q, of_k, of_v, of_o = random.split(key, 4)
        make = partial(Linear.init, bias=bias, dtype=dtype, device=device)
        return cls(
            make(of_q, embed_dim, num_heads * size),
            make(of_k, embed_dim, kv_heads * size),
            make(of_v, embed_dim, kv_heads * size),
            make(of_o, num_heads * size, embed_dim),
            rotary,
            num_heads,
            kv_heads,
            causal,
            window,
        )

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.q_proj.weight.shape[-2] // self.num_heads

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        text = f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, causal={self.causal}"
        return text if self.window is None else f"{text}, window={self.window}"


@applies(GroupedQueryAttention)
def grouped_query_attention(
    p: GroupedQueryAttention,
    x: Float[Tensor, "*batch length embed_dim"],
    *,
    mask: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch length embed_dim"]:
    """Every position gathers from those that it may see, by several heads.

    Args:
        p: the parameters.
        x: whole sequences.
        mask: broadcasts to ``[*batch, num_heads, length, length]``; True takes part, floating numbers are added to the
            scores. It holds besides `causal` and `window`.

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: `mask` is neither boolean nor floating.

    Source:
        Ainslie et al.: GQA, 2023.
    """
    _check_sequence("grouped_query_attention", x)
    q, k, v = _heads(p, x, None)
    if p.window is not None:
        near = ops.sliding_window_mask(x.shape[-2], window=p.window, causal=p.causal, device=x.device)
        mask = near if mask is None else both(mask, near)
    causal = p.causal and p.window is None
    return _merged(p, ops.scaled_dot_product_attention(q, k, v, mask=mask, is_causal=causal, enable_gqa=True))


@container
class KeyValueCache:
    """Keys and values of earlier positions, for `cached_attention`.

    Position n is kept at index ``n % length``; when the cache is full, the oldest positions are forgotten.

    Attributes:
        keys: ``[*batch, num_kv_heads, length, head_dim]``, turned by the rotary embedding already.
        values: of the same shape.
        position: how many positions have been taken in, one number for the whole batch. (Under `vmap` every example
            may have its own.)
    """

    keys: Float[Tensor, "*batch num_kv_heads length head_dim"] = buffer()
    values: Float[Tensor, "*batch num_kv_heads length head_dim"] = buffer()
    position: Int[Tensor, ""] = buffer()

    @classmethod
    def init(cls, p: GroupedQueryAttention, length: int, *, batch: Sequence[int] = ()) -> Self:
        """An empty cache with the sizes, dtype and device of a layer's keys.

        Args:
            p: the layer.
            length: how many positions to keep. A layer with a window that takes n positions at a time needs no more
                than ``window + n - 1``.
            batch: the leading dimensions of the inputs. Default: none.
        """
        zeros = p.k_proj.weight.new_zeros((*batch, p.num_kv_heads, length, p.head_dim))
        return cls(zeros, zeros.clone(), torch.zeros((), dtype=torch.int64, device=zeros.device))


def cached_attention(
    p: GroupedQueryAttention,
    x: Float[Tensor, "*batch new embed_dim"],
    cache: KeyValueCache,
    *,
    mask: Shaped[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*batch new embed_dim"], KeyValueCache]:
    """What `grouped_query_attention` gives for the next positions of sequences whose earlier ones are in the cache.

    Args:
        p: the parameters of a causal layer.
        x: the next positions, one or several.
        cache: of the earlier ones; it is not changed.
        mask: broadcasts to ``[*batch, num_heads, new, length]``, in the order of the cache's indices; True takes part,
            floating numbers are added to the scores.

    Returns:
        The result for the new positions, and the cache with them.

    Raises:
        ArgumentError: the layer is not causal, or `mask` is neither boolean nor floating.
        ShapeError: the shapes do not fit, or there are more new positions than the cache keeps.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import GroupedQueryAttention, KeyValueCache, cached_attention
        >>> p = GroupedQueryAttention.init(pn.random.key(0), 8, 4, num_kv_heads=2)
        >>> cache = KeyValueCache.init(p, 16, batch=(3,))
        >>> prompt, cache = cached_attention(p, torch.ones(3, 5, 8), cache)
        >>> y, cache = cached_attention(p, torch.ones(3, 1, 8), cache)
        >>> y.shape, int(cache.position)
        (torch.Size([3, 1, 8]), 6)
    """
    if not p.causal:
        raise ArgumentError(
            "cached_attention: the layer is not causal, so earlier positions would have to see the new ones: use "
            "grouped_query_attention on whole sequences."
        )
    _check_sequence("cached_attention", x)
    _check_cache(p, x, cache)
    new, length = x.shape[-2], cache.keys.shape[-2]
    positions = cache.position + torch.arange(new, device=x.device)
    q, k, v = _heads(p, x, positions)
    cache = _extended(cache, k, v)
    # Which position an index holds: the last one up to the newest that belongs there; negative if it holds none.
    newest = cache.position - 1
    held = newest - (newest - torch.arange(length, device=x.device)) % length
    distances = positions.unsqueeze(-1) - held
    allowed = (held >= 0) & (distances >= 0)
    if p.window is not None:
        allowed = allowed & (distances < p.window)
    allowed = allowed if mask is None else both(mask, allowed)
    out = ops.scaled_dot_product_attention(q, cache.keys, cache.values, mask=allowed, enable_gqa=True)
    return _merged(p, out), cache


def _heads(p: GroupedQueryAttention, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (
        linear(part, x).unflatten(-1, (heads, -1)).transpose(-3, -2)
        for part, heads in ((p.q_proj, p.num_heads), (p.k_proj, p.num_kv_heads), (p.v_proj, p.num_kv_heads))
    )
    if p.rotary is None:
        return q, k, v
    turned = partial(rotary_embedding, p.rotary, positions=positions)
    return turned(q), turned(k), v


def _merged(p: GroupedQueryAttention, out: Tensor) -> Tensor:
    return linear(p.o_proj, out.transpose(-3, -2).flatten(-2))


def _extended(cache: KeyValueCache, k: Tensor, v: Tensor) -> KeyValueCache:
    # Every index looks up whether, and which, new position comes to it: a choice that no value of a tensor steers.
    new, length = k.shape[-2], cache.keys.shape[-2]
    source = (torch.arange(length, device=k.device) - cache.position) % length
    comes = (source < new).unsqueeze(-1)

    def taken(old: Tensor, fresh: Tensor) -> Tensor:
        if new > 1:
            where = source.clamp_max(new - 1).unsqueeze(-1).expand(old.shape)
            fresh = fresh.gather(-2, where)
        return torch.where(comes, fresh, old)

    return replace(cache, keys=taken(cache.keys, k), values=taken(cache.values, v), position=cache.position + new)


def _check_sequence(name: str, x: Tensor) -> None:
    if x.dim() < 2:
        raise ShapeError(f"{name}: expected x [*batch, length, embed_dim], got {list(x.shape)}.")


def _check_cache(p: GroupedQueryAttention, x: Tensor, cache: KeyValueCache) -> None:
    length = cache.keys.shape[-2]
    wanted = (*x.shape[:-2], p.num_kv_heads, length, p.head_dim)
    if cache.keys.shape != wanted or cache.values.shape != wanted:
        raise ShapeError(
            f"cached_attention: for an input of shape {list(x.shape)} the cache must hold keys and values of shape "
            f"{list(wanted)}, got {list(cache.keys.shape)} and {list(cache.values.shape)}. Make it with "
            f"KeyValueCache.init(p, {length}, batch={tuple(x.shape[:-2])})."
        )
    if not 0 < x.shape[-2] <= length:
        raise ShapeError(
            f"cached_attention: {x.shape[-2]} new positions do not fit into a cache that keeps {length}: give them in "
            f"several calls, or make a longer cache."
        )
