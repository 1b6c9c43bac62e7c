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

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn import initializers, random
from purenn.errors import ShapeError
from purenn.layers.dropout import Dropout, dropout
from purenn.layers.embedding import Embedding, embedding
from purenn.layers.linear import Linear, linear
from purenn.layers.norm import LayerNorm, layer_norm
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import placed
from purenn.models.gpt2_block import GPT2Block, Mask, gpt2_block
from purenn.tree import Layer, applies, container, tie


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
