"""Self-attention with a single head and no projection of the result: the idea alone.

Every position of a sequence makes a query, a key and a value, and takes the average of all values, weighted by how well
their keys fit its query. `MultiheadAttention` does so in several subspaces at once.
"""

from functools import partial
from typing import Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from purenn import ops, random
from purenn.layers.linear import Linear, linear
from purenn.tree import Layer, applies, container


@container
class SelfAttention(Layer):
    """A single head of self-attention; see `self_attention`.

    Attributes:
        query: the map from the input to queries, ``[embed_dim, embed_dim]``.
        key: the map to keys.
        value: the map to values.
    """

    query: Linear
    key: Linear
    value: Linear

    @classmethod
    def init(
        cls,
        key: Tensor,
        embed_dim: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the three maps as `Linear.init` does.

        Args:
            key: random key.
            embed_dim: size of the input's last dimension, and of the result's.
            bias: whether the maps have biases. Default: True.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        make = partial(
            Linear.init, in_features=embed_dim, out_features=embed_dim, bias=bias, dtype=dtype, device=device
        )
        return cls(*(make(part) for part in random.split(key, 3)))


@applies(SelfAttention)
def self_attention(
    p: SelfAttention,
    x: Float[Tensor, "*batch length embed_dim"],
    *,
    mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "*batch length embed_dim"]:
    """``softmax(q k^T / sqrt(embed_dim)) v`` with queries, keys and values made from `x`.

    Args:
        p: the three maps.
        x: the sequences.
        mask: broadcasts to ``[*batch, length, length]``; True takes part, floating numbers are added to the scores.
        is_causal: whether a position sees none after it. Default: False.

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: `mask` is neither boolean nor floating.

    Source:
        Vaswani et al.: Attention Is All You Need, 2017, equation 1.
    """
    q, k, v = linear(p.query, x), linear(p.key, x), linear(p.value, x)
    return ops.scaled_dot_product_attention(q, k, v, mask=mask, is_causal=is_causal)
