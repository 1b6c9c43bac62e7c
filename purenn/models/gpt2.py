"""GPT-2: a Transformer that reads a text from left to right and scores what comes next.

Names and layouts are those of the public checkpoints. The leaves of `GPT2`, with their shapes for the smallest one:

- ``transformer.wte.weight`` [50257, 768], ``transformer.wpe.weight`` [1024, 768];
- for block i from 0 to 11, below ``transformer.h.{i}``: ``ln_1.*``, ``attn.c_attn.*`` [768, 2304] (queries, keys and
  values side by side), ``attn.c_proj.*`` [768, 768], ``ln_2.*``, ``mlp.c_fc.*`` [768, 3072], ``mlp.c_proj.*``
  [3072, 768]; each with ``weight`` and ``bias``, and the weights of the maps as ``[in_features, out_features]``;
- ``transformer.ln_f.*``;
- ``lm_head.weight``, which is tied to ``transformer.wte.weight`` and therefore no leaf of its own.

``bridge.to_module(p).load_state_dict(state)`` reads such a state dict into the tensors of ``p``. Files that hold the
keys without the prefix ``transformer.`` are those of the part without the head, ``p.transformer``. Some also hold
masks, ``h.{i}.attn.bias`` and ``h.{i}.attn.masked_bias``, which are constants here: read them with ``strict=False``.
"""

import math
from typing import Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from purenn import initializers, ops, random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.dropout import Dropout, dropout
from purenn.layers.embedding import Embedding, embedding
from purenn.layers.linear import Linear, linear
from purenn.layers.norm import LayerNorm, layer_norm
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import placed
from purenn.tree import Layer, applies, container, static, tie

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


@container
class GPT2Model(Layer):
    """The model without its head; see `gpt2_model`.

    Attributes:
        wte: a vector for each token.
        wpe: a vector for each position.
        drop: dropout of their sum.
        h: the blocks.
        ln_f: normalisation of the result.
    """

    wte: Embedding
    wpe: Embedding
    drop: Dropout
    h: tuple[GPT2Block, ...]
    ln_f: LayerNorm

    @classmethod
    def init(
        cls,
        key: Tensor,
        *,
        vocab_size: int = 50257,
        max_length: int = 1024,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        dropout: float = 0.1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters; arguments and errors are those of `GPT2.init`."""
        where = placed(key, dtype, device)
        token_key, position_key, blocks_key = random.split(key, 3)
        return cls(
            Embedding(initializers.normal(token_key, (vocab_size, dim), std=0.02, **where)),
            Embedding(initializers.normal(position_key, (max_length, dim), std=0.02, **where)),
            Dropout(dropout),
            tuple(
                GPT2Block.init(k, dim, num_heads, dropout=dropout, depth=depth, **where)
                for k in random.split(blocks_key, depth)
            ),
            LayerNorm.init(dim, **where),
        )


@applies(GPT2Model)
def gpt2_model(
    p: GPT2Model, tokens: Int[Tensor, "*batch length"], *, mask: Mask = None, key: Tensor | None = None
) -> Float[Tensor, "*batch length dim"]:
    """A vector for each position, which depends on the tokens up to that position.

    Args:
        p: the parameters.
        tokens: whole numbers below the size of the vocabulary.
        mask: which positions are seen besides being no later ones, of a shape that broadcasts to
            ``[*batch, heads, length, length]``. Boolean: **True takes part**, so ``[batch, 1, 1, length]`` with False
            at the padding hides it. Floating: added to the scores.
        key: random key of the dropouts; without one there are none.

    Raises:
        ShapeError: the text is longer than the model has positions, or the mask does not fit.
        ArgumentError: `mask` is neither boolean nor floating.
    """
    length, most = tokens.shape[-1], p.wpe.weight.shape[0]
    if length > most:
        raise ShapeError(
            f"gpt2: this model has vectors for {most} positions, got {length} tokens. Cut the text, or init the model "
            f"with a larger max_length."
        )
    drop_key, *block_keys = split_keys(key, len(p.h) + 1)
    positions = torch.arange(length, device=tokens.device)
    x = dropout(p.drop, embedding(p.wte, tokens) + embedding(p.wpe, positions), key=drop_key)
    for block, block_key in zip(p.h, block_keys, strict=True):
        x = gpt2_block(block, x, mask=mask, key=block_key)
    return layer_norm(p.ln_f, x)


@container
class GPT2(Layer):
    """The whole model; see `gpt2`. The module's docstring lists the paths of its leaves.

    Attributes:
        transformer: the model without its head.
        lm_head: the map from the last vectors to the scores of all tokens, without bias. Its weight is tied to
            ``transformer.wte.weight``.
    """

    transformer: GPT2Model
    lm_head: Linear

    @classmethod
    def init(
        cls,
        key: Tensor,
        *,
        vocab_size: int = 50257,
        max_length: int = 1024,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        dropout: float = 0.1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters. The defaults are those of the smallest published model, with 124,439,808 of them.

        Args:
            key: random key.
            vocab_size: number of tokens. Default: 50257.
            max_length: number of positions. Default: 1024.
            dim: length of each position's vector. Default: 768.
            depth: number of blocks. Default: 12.
            num_heads: number of heads, a divisor of `dim`. Default: 12.
            dropout: rate of all dropouts, if a key is given. Default: 0.1.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `dim` is not a multiple of `num_heads`, or `dropout` is no probability.
        """
        transformer = GPT2Model.init(
            key,
            vocab_size=vocab_size,
            max_length=max_length,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            dropout=dropout,
            dtype=dtype,
            device=device,
        )
        p = cls(transformer, Linear(transformer.wte.weight, None))
        return tie(p, {"lm_head.weight": "transformer.wte.weight"})


@applies(GPT2)
def gpt2(
    p: GPT2, tokens: Int[Tensor, "*batch length"], *, mask: Mask = None, key: Tensor | None = None
) -> Float[Tensor, "*batch length vocab_size"]:
    """For each position the scores of all tokens to be the next; arguments and errors are those of `gpt2_model`.

    Source:
        Radford et al.: Language Models are Unsupervised Multitask Learners, 2019.
    """
    return linear(p.lm_head, gpt2_model(p.transformer, tokens, mask=mask, key=key))
