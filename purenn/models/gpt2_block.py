"""The block of GPT-2: causal attention, and hidden features of each position, around residual connections.

The maps are stored as ``[in_features, out_features]``, the other way round than in `purenn.layers.Linear`, as in the
public checkpoints.
"""

import math
from typing import Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from purenn import initializers, ops, random
from purenn.errors import ArgumentError
from purenn.layers.dropout import Dropout, dropout
from purenn.layers.norm import LayerNorm, layer_norm
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import placed
from purenn.tree import Layer, applies, container, static

Mask = Shaped[Tensor, "..."] | None


@container
class TransposedLinear(Layer):
    """A linear map that is stored the other way round; see `transposed_linear`.

    Attributes:
        weight: ``[in_features, out_features]``.
        bias: ``[out_features]``.
    """

    weight: Float[Tensor, "in_features out_features"]
    bias: Float[Tensor, " out_features"]

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        out_features: int,
        *,
        std: float = 0.02,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the weight from N(0, std^2); the bias is 0.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            out_features: size of the result's last dimension.
            std: standard deviation. Default: 0.02.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        weight = initializers.normal(key, (in_features, out_features), std=std, dtype=dtype, device=device)
        return cls(weight, torch.zeros(out_features, dtype=weight.dtype, device=weight.device))

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.weight.shape[-2]}, out_features={self.weight.shape[-1]}"


@applies(TransposedLinear)
def transposed_linear(
    p: TransposedLinear, x: Float[Tensor, "*batch in_features"]
) -> Float[Tensor, "*batch out_features"]:
    """``x @ weight + bias``."""
    return F.linear(x, p.weight.mT, p.bias)


@container
class GPT2Attention(Layer):
    """Causal attention with several heads; see `gpt2_attention`.

    Attributes:
        c_attn: the map to queries, keys and values.
        c_proj: the map of what the heads have gathered.
        resid_dropout: of the result.
        num_heads: number of heads.
        dropout: probability with which a weight of the average is set to 0.
    """

    c_attn: TransposedLinear
    c_proj: TransposedLinear
    resid_dropout: Dropout
    num_heads: int = static()
    dropout: float = static(default=0.0)


@applies(GPT2Attention)
def gpt2_attention(
    p: GPT2Attention, x: Float[Tensor, "*batch length dim"], *, mask: Mask = None, key: Tensor | None = None
) -> Float[Tensor, "*batch length dim"]:
    """What each position gathers from itself and those before it; arguments as in `gpt2_model`."""
    weights_key, result_key = split_keys(key, 2)
    parts = transposed_linear(p.c_attn, x).unflatten(-1, (3, p.num_heads, -1))
    q, k, v = (part.transpose(-3, -2) for part in parts.unbind(-3))
    y = ops.scaled_dot_product_attention(q, k, v, mask=mask, is_causal=True, dropout=p.dropout, key=weights_key)
    return dropout(p.resid_dropout, transposed_linear(p.c_proj, y.transpose(-3, -2).flatten(-2)), key=result_key)


@container
class GPT2MLP(Layer):
    """The hidden features of each position; see `gpt2_mlp`.

    Attributes:
        c_fc: the map to them.
        c_proj: the map back.
        dropout: of the result.
    """

    c_fc: TransposedLinear
    c_proj: TransposedLinear
    dropout: Dropout


@applies(GPT2MLP)
def gpt2_mlp(p: GPT2MLP, x: Float[Tensor, "*batch dim"], *, key: Tensor | None = None) -> Float[Tensor, "*batch dim"]:
    """``c_proj(gelu(c_fc(x)))``, with GELU by its approximation through tanh; `key` is that of the dropout."""
    hidden = F.gelu(transposed_linear(p.c_fc, x), approximate="tanh")
    return dropout(p.dropout, transposed_linear(p.c_proj, hidden), key=key)


@container
class GPT2Block(Layer):
    """Attention and hidden features, each around a residual connection; see `gpt2_block`.

    Attributes:
        ln_1: normalisation before the attention.
        attn: the attention.
        ln_2: normalisation before the hidden features.
        mlp: the hidden features.
    """

    ln_1: LayerNorm
    attn: GPT2Attention
    ln_2: LayerNorm
    mlp: GPT2MLP

    @classmethod
    def init(
        cls,
        key: Tensor,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.1,
        depth: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the maps from N(0, 0.02^2), and those that write into the sum with a smaller deviation.

        Args:
            key: random key.
            dim: length of each position's vector.
            num_heads: number of heads, a divisor of `dim`.
            dropout: rate of all dropouts. Default: 0.1.
            depth: how many blocks the model has; ``c_proj`` has the deviation ``0.02 / sqrt(2 depth)``, so that the sum
                of all blocks does not grow. Default: 1.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `dim` is not a multiple of `num_heads`, or `dropout` is no probability.
        """
        if num_heads < 1 or dim % num_heads:
            raise ArgumentError(
                f"GPT2Block.init: dim must be a multiple of num_heads, so that all heads have the same size, got "
                f"dim={dim} and num_heads={num_heads}."
            )
        where = placed(key, dtype, device)
        keys = random.split(key, 4)
        std = 0.02 / math.sqrt(2 * depth)
        drop = Dropout(dropout)
        attention = GPT2Attention(
            TransposedLinear.init(keys[0], dim, 3 * dim, **where),
            TransposedLinear.init(keys[1], dim, dim, std=std, **where),
            drop,
            num_heads,
            dropout,
        )
        hidden = GPT2MLP(
            TransposedLinear.init(keys[2], dim, 4 * dim, **where),
            TransposedLinear.init(keys[3], 4 * dim, dim, std=std, **where),
            drop,
        )
        return cls(LayerNorm.init(dim, **where), attention, LayerNorm.init(dim, **where), hidden)


@applies(GPT2Block)
def gpt2_block(
    p: GPT2Block, x: Float[Tensor, "*batch length dim"], *, mask: Mask = None, key: Tensor | None = None
) -> Float[Tensor, "*batch length dim"]:
    """``x + attn(ln_1(x))``, and then ``x + mlp(ln_2(x))``; arguments as in `gpt2_model`."""
    attention_key, mlp_key = split_keys(key, 2)
    x = x + gpt2_attention(p.attn, layer_norm(p.ln_1, x), mask=mask, key=attention_key)
    return x + gpt2_mlp(p.mlp, layer_norm(p.ln_2, x), key=mlp_key)
