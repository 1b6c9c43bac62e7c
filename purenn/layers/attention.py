"""Attention: every position of a sequence gathers from others what its query asks for.

`MultiheadAttention` is torch's layer of that name, with its parameters, options and masks. The idea alone is
`SelfAttention`; decoders of language models have theirs in `GroupedQueryAttention`.

Masks come in two conventions. In the masks of torch's layers (`attn_mask`, `key_padding_mask`, and all of the
transformers') True is **left out**. In those of this library's own (`mask` elsewhere and in `purenn.ops`) True **takes
part**, as in torch's function for attention. Write ``~mask`` to change over. Floating masks of either kind are added to
the scores. Where nothing takes part the average is zero, never NaN.
"""

from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from purenn import initializers, ops, random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers._attention_masks import torch_masks
from purenn.layers.linear import Linear, linear
from purenn.ops._masks import both
from purenn.tree import Layer, applies, container, static


@container
class MultiheadAttention(Layer):
    """Attention with several heads, each in a subspace of its own; see `multihead_attention`.

    Attributes:
        in_proj_weight: the maps to queries, keys and values, one below the other, ``[3 embed_dim, embed_dim]``; None if
            keys or values have another size than queries.
        q_proj_weight: then, the map to queries, ``[embed_dim, embed_dim]``; otherwise None, like the next two.
        k_proj_weight: the map to keys, ``[embed_dim, kdim]``.
        v_proj_weight: the map to values, ``[embed_dim, vdim]``.
        in_proj_bias: the biases of the three maps, ``[3 embed_dim]``, or None.
        bias_k: a key that is added to every sequence, ``[1, 1, embed_dim]``, or None.
        bias_v: its value.
        out_proj: the map of what the heads have gathered.
        num_heads: number of heads.
        dropout: probability with which a weight of the average is set to 0. Default: 0.
        batch_first: whether batched inputs are ``[batch, length, features]`` and not ``[length, batch, features]``.
        add_zero_attn: whether a key of zeros with a value of zeros is added to every sequence.
    """

    in_proj_weight: Float[Tensor, "3*embed_dim embed_dim"] | None
    q_proj_weight: Float[Tensor, "embed_dim embed_dim"] | None
    k_proj_weight: Float[Tensor, "embed_dim kdim"] | None
    v_proj_weight: Float[Tensor, "embed_dim vdim"] | None
    in_proj_bias: Float[Tensor, " 3*embed_dim"] | None
    bias_k: Float[Tensor, "1 1 embed_dim"] | None
    bias_v: Float[Tensor, "1 1 embed_dim"] | None
    out_proj: Linear
    num_heads: int = static()
    dropout: float = static(default=0.0)
    batch_first: bool = static(default=False)
    add_zero_attn: bool = static(default=False)

    @classmethod
    def init(
        cls,
        key: Tensor,
        embed_dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters as torch does: Xavier's uniform distribution for the maps, zero biases.

        Args:
            key: random key.
            embed_dim: size of queries and results, all heads together.
            num_heads: number of heads, a divisor of `embed_dim`.
            dropout: probability with which a weight of the average is set to 0, if a key is given. Default: 0.
            bias: whether the maps have biases. Default: True.
            add_bias_kv: whether there are `bias_k` and `bias_v`. Default: False.
            add_zero_attn: whether a key and a value of zeros are added. Default: False.
            kdim: size of the keys' last dimension. Default: `embed_dim`.
            vdim: size of the values' last dimension. Default: `embed_dim`.
            batch_first: the order of the dimensions of batched inputs. Default: False, as in torch.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `embed_dim` is not a multiple of `num_heads`, or `dropout` is no probability.
        """
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ArgumentError(
                f"MultiheadAttention.init: embed_dim must be a positive multiple of num_heads, so that all heads have "
                f"the same size, got embed_dim={embed_dim} and num_heads={num_heads}."
            )
        if not 0 <= dropout <= 1:
            raise ArgumentError(
                f"MultiheadAttention.init: dropout is the probability of a zero and must be from 0 to 1, got {dropout}."
            )
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        in_key, out_key, k_key, v_key = random.split(key, 4)
        sizes = (embed_dim, kdim or embed_dim, vdim or embed_dim)
        if sizes == (embed_dim,) * 3:
            of_inputs: Any = (initializers.xavier_uniform(in_key, (3 * embed_dim, embed_dim), **options), *[None] * 3)
        else:
            parts = zip(random.split(in_key, 3), sizes, strict=True)
            of_inputs = (None, *(initializers.xavier_uniform(part, (embed_dim, n), **options) for part, n in parts))
        out_proj = Linear.init(out_key, embed_dim, embed_dim, bias=False, **options)
        zeros = partial(torch.zeros, dtype=out_proj.weight.dtype, device=out_proj.weight.device)
        bias_k, bias_v = (
            initializers.xavier_normal(part, (1, 1, embed_dim), **options) if add_bias_kv else None
            for part in (k_key, v_key)
        )
        return cls(
            *of_inputs,
            in_proj_bias=zeros(3 * embed_dim) if bias else None,
            bias_k=bias_k,
            bias_v=bias_v,
            out_proj=Linear(out_proj.weight, zeros(embed_dim) if bias else None),
            num_heads=num_heads,
            dropout=dropout,
            batch_first=batch_first,
            add_zero_attn=add_zero_attn,
        )

    @property
    def embed_dim(self) -> int:
        """Size of queries and results, all heads together."""
        return self.out_proj.weight.shape[-2]

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.embed_dim // self.num_heads

    @property
    def kdim(self) -> int:
        """Size of the keys' last dimension."""
        return self.embed_dim if self.k_proj_weight is None else self.k_proj_weight.shape[-1]

    @property
    def vdim(self) -> int:
        """Size of the values' last dimension."""
        return self.embed_dim if self.v_proj_weight is None else self.v_proj_weight.shape[-1]

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        text = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"
        if (self.kdim, self.vdim) != (self.embed_dim, self.embed_dim):
            text += f", kdim={self.kdim}, vdim={self.vdim}"
        if self.in_proj_bias is None:
            text += ", bias=False"
        if self.bias_k is not None:
            text += ", add_bias_kv=True"
        for name, default in (("dropout", 0.0), ("add_zero_attn", False), ("batch_first", False)):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


@applies(MultiheadAttention)
def multihead_attention(
    p: MultiheadAttention,
    query: Float[Tensor, "... embed_dim"],
    keys: Float[Tensor, "... kdim"] | None = None,
    values: Float[Tensor, "... vdim"] | None = None,
    *,
    key_padding_mask: Shaped[Tensor, "*batch source"] | None = None,
    need_weights: bool = True,
    attn_mask: Shaped[Tensor, "..."] | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    key: Tensor | None = None,
) -> tuple[Float[Tensor, "... embed_dim"], Float[Tensor, "..."] | None]:
    """Gather from the values at the source positions what the queries at the target positions ask for.

    Args:
        p: the parameters.
        query: ``[target, batch, embed_dim]``, or ``[batch, target, embed_dim]`` with `batch_first`, or one example
            ``[target, embed_dim]``.
        keys: of the source positions, in the same order of dimensions. Default: `query`.
        values: one for each key. Default: `keys`.
        key_padding_mask: ``[batch, source]``, or ``[source]`` for one example. Boolean: True leaves that position out.
            Floating: added to the scores.
        need_weights: whether to return the weights of the averages. Default: True, as in torch. Without them attention
            runs in less time and memory.
        attn_mask: ``[target, source]`` for all, ``[batch, target, source]``, ``[batch, heads, target, source]``, or
            torch's ``[batch * heads, target, source]``. What three dimensions mean is told by the length of the first,
            and a mask for each example is never taken for one for each head. Boolean: True leaves the pair out.
            Floating: added to the scores.
        average_attn_weights: whether the weights that are returned are means over the heads. Default: True.
        is_causal: whether target i sees the source positions 0 to i only; needs no mask, and holds besides one.
        key: random key of the dropout; without one there is none.

    Returns:
        The result, shaped like `query`; and the weights, ``[batch, target, source]``, or ``[batch, heads, target,
        source]`` without the mean, or None (`need_weights`). Sources include `bias_k` and the zeros, if there are any.
        A query from which everything is masked has weights of zero, and the bias of `out_proj` for its result.

    Raises:
        ShapeError: inputs or masks do not fit.
        ArgumentError: a mask is neither boolean nor floating.
        DeviceError: `key` is on another device.

    Source:
        Vaswani et al.: Attention Is All You Need, 2017, section 3.2.2.
    """
    keys = query if keys is None else keys
    values = keys if values is None else values
    _check_inputs(p, query, keys, values)
    batched, first = query.dim() == 3, p.batch_first
    # Heads go where the kernels want them: [*batch, heads, length, features].
    order = (1, 0, 2) if not batched else (0, 2, 1, 3) if first else (1, 2, 0, 3)
    q, k, v = (part.unflatten(-1, (p.num_heads, -1)).permute(order) for part in _projected(p, query, keys, values))
    targets, sources = q.shape[-2], k.shape[-2]
    k, v, added = _with_extra_keys(p, k, v)
    mask = torch_masks(attn_mask, key_padding_mask, q.shape[:-2], targets, sources)
    if added:
        if is_causal:
            allowed = ops.causal_mask(targets, sources, device=q.device)
            mask = allowed if mask is None else both(mask, allowed)
        # Nothing masks the keys that are added: True, or 0.
        mask = None if mask is None else F.pad(mask, (0, added), value=1 if mask.dtype == torch.bool else 0)
    options = {"mask": mask, "is_causal": is_causal and not added, "dropout": p.dropout, "key": key}
    weights = None
    if need_weights:
        weights = ops.attention_weights(q, k, **options)
        out = weights @ v
        weights = weights.mean(-3) if average_attn_weights else weights
    else:
        out = ops.scaled_dot_product_attention(q, k, v, **options)
    back = (1, 0, 2) if not batched else (0, 2, 1, 3) if first else (2, 0, 1, 3)
    return linear(p.out_proj, out.permute(back).flatten(-2)), weights


def _projected(p: MultiheadAttention, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    weight, bias = p.in_proj_weight, p.in_proj_bias
    # One product for inputs that are the same tensor.
    if weight is not None and values is keys:
        if keys is query:
            return F.linear(query, weight, bias).chunk(3, -1)
        size = p.embed_dim
        (of_query, of_rest) = weight.split((size, 2 * size))
        (bias_query, bias_rest) = (None, None) if bias is None else bias.split((size, 2 * size))
        return F.linear(query, of_query, bias_query), *F.linear(keys, of_rest, bias_rest).chunk(2, -1)
    weights: Any = (p.q_proj_weight, p.k_proj_weight, p.v_proj_weight) if weight is None else weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(F.linear(*each) for each in zip((query, keys, values), weights, biases, strict=True))


def _with_extra_keys(p: MultiheadAttention, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
    added = 0
    shape = (*k.shape[:-2], 1, k.shape[-1])
    if p.bias_k is not None and p.bias_v is not None:
        extra = (bias.reshape(p.num_heads, 1, -1).expand(shape) for bias in (p.bias_k, p.bias_v))
        k, v = (torch.cat(pair, -2) for pair in zip((k, v), extra, strict=True))
        added += 1
    if p.add_zero_attn:
        k, v = (torch.cat((x, x.new_zeros(shape)), -2) for x in (k, v))
        added += 1
    return k, v, added


def _check_inputs(p: MultiheadAttention, query: Tensor, keys: Tensor, values: Tensor) -> None:
    sizes = (query.shape[-1:], keys.shape[-1:], values.shape[-1:]) == ((p.embed_dim,), (p.kdim,), (p.vdim,))
    dims = query.dim() in (2, 3) and query.dim() == keys.dim() == values.dim()
    batch = 0 if p.batch_first else 1
    if (
        not sizes
        or not dims
        or keys.shape[:-1] != values.shape[:-1]
        or (query.dim() == 3 and query.shape[batch] != keys.shape[batch])
    ):
        order = ("batch, {}" if p.batch_first else "{}, batch").format
        raise ShapeError(
            f"multihead_attention: expected query [{order('target')}, {p.embed_dim}], keys [{order('source')}, "
            f"{p.kdim}] and values [{order('source')}, {p.vdim}], all three with or all three without batch, got "
            f"{list(query.shape)}, {list(keys.shape)} and {list(values.shape)}. The order of the dimensions is that of "
            f"batch_first={p.batch_first}."
        )
