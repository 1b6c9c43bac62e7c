"""The layers of a Transformer: attention and feed-forward blocks, each around a residual connection.

Names, options, masks and parameters are those of `torch.nn`. In all masks here True is **left out**, and floating
numbers are added to the scores. Dropout happens if a key is given, which is split among all places that draw.
"""

from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from purenn import random
from purenn.layers._transformer_parts import (
    Activation,
    activation_layer,
    attended,
    feed_forward,
    matching_norm,
    residual,
    split_keys,
)
from purenn.layers.attention import MultiheadAttention
from purenn.layers.dropout import Dropout
from purenn.layers.linear import Linear
from purenn.layers.norm import LayerNorm
from purenn.tree import Layer, applies, container, static

Mask = Shaped[Tensor, "..."] | None


@container
class TransformerEncoderLayer(Layer):
    """Self-attention and a feed-forward layer; see `transformer_encoder_layer`.

    Attributes:
        self_attn: the attention.
        linear1: the map to the hidden features.
        dropout: of the hidden features.
        linear2: the map back.
        norm1: normalisation at the attention.
        norm2: normalisation at the feed-forward layer.
        dropout1: of the attention's result.
        dropout2: of the feed-forward layer's result.
        activation: of the hidden features.
        norm_first: whether inputs are normalised (Pre-LN), and not the sums (Post-LN). Default: False.
    """

    self_attn: MultiheadAttention
    linear1: Linear
    dropout: Dropout
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm
    dropout1: Dropout
    dropout2: Dropout
    activation: Layer
    norm_first: bool = static(default=False)

    @classmethod
    def init(
        cls,
        key: Tensor,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters as `MultiheadAttention.init` and `Linear.init` do.

        Args:
            key: random key.
            d_model: size of the inputs' last dimension.
            nhead: number of heads, a divisor of `d_model`.
            dim_feedforward: number of hidden features. Default: 2048.
            dropout: rate of all dropouts, that of the attention's weights included. Default: 0.1.
            activation: "relu", "gelu", a container such as ``SiLU()``, or a function of a tensor. Default: "relu".
            layer_norm_eps: of the normalisations. Default: 1e-5.
            batch_first: whether batched inputs are ``[batch, length, d_model]`` and not ``[length, batch, d_model]``.
                Default: False, as in torch.
            norm_first: whether inputs are normalised (Pre-LN), and not the sums (Post-LN). Default: False.
            bias: whether maps and normalisations have biases. Default: True.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `d_model` is not a multiple of `nhead`, `dropout` is no probability, or `activation` is an
                unknown name.
            ContainerError: `activation` updates buffers.
        """
        layer = activation_layer(cls, activation)
        attention_key, first_key, second_key = random.split(key, 3)
        options: Any = {"bias": bias, "dtype": dtype, "device": device}
        attention = MultiheadAttention.init(
            attention_key, d_model, nhead, dropout=dropout, batch_first=batch_first, **options
        )
        linear1 = Linear.init(first_key, d_model, dim_feedforward, **options)
        linear2 = Linear.init(second_key, dim_feedforward, d_model, **options)
        norm = partial(matching_norm, d_model, layer_norm_eps, bias, linear1.weight)
        drop = Dropout(dropout)
        return cls(attention, linear1, drop, linear2, norm(), norm(), drop, drop, layer, norm_first)


@applies(TransformerEncoderLayer)
def transformer_encoder_layer(
    p: TransformerEncoderLayer,
    src: Float[Tensor, "... d_model"],
    *,
    src_mask: Mask = None,
    src_key_padding_mask: Mask = None,
    is_causal: bool = False,
    key: Tensor | None = None,
) -> Float[Tensor, "... d_model"]:
    """``x + attention(x)``, then ``x + feed_forward(x)``, with a normalisation of each sum or of each block's input.

    Args:
        p: the parameters.
        src: ``[length, batch, d_model]``, ``[batch, length, d_model]`` with `batch_first`, or ``[length, d_model]``.
        src_mask: the `attn_mask` of `multihead_attention`.
        src_key_padding_mask: ``[batch, length]``; True leaves a position out.
        is_causal: whether a position sees none after it; needs no mask. Default: False.
        key: random key of the dropouts; without one there are none.

    Raises:
        ShapeError: inputs or masks do not fit.

    Source:
        Vaswani et al.: Attention Is All You Need, 2017. `norm_first`: Xiong et al.: On Layer Normalization in the
        Transformer Architecture, 2020.
    """
    attention_key, feed_key = split_keys(key, 2)
    attend = partial(attended, p.self_attn, p.dropout1, attention_key, None, src_mask, src_key_padding_mask, is_causal)
    x = residual(p, p.norm1, src, attend)
    return residual(p, p.norm2, x, partial(feed_forward, p, p.dropout2, feed_key))


@container
class TransformerDecoderLayer(Layer):
    """Self-attention, attention to an encoder's output, and a feed-forward layer; see `transformer_decoder_layer`.

    Attributes:
        self_attn: the attention within the target.
        multihead_attn: the attention from the target to the memory.
        linear1: the map to the hidden features.
        dropout: of the hidden features.
        linear2: the map back.
        norm1: normalisation at `self_attn`.
        norm2: normalisation at `multihead_attn`.
        norm3: normalisation at the feed-forward layer.
        dropout1: of the result of `self_attn`.
        dropout2: of the result of `multihead_attn`.
        dropout3: of the feed-forward layer's result.
        activation: of the hidden features.
        norm_first: whether inputs are normalised (Pre-LN), and not the sums (Post-LN). Default: False.
    """

    self_attn: MultiheadAttention
    multihead_attn: MultiheadAttention
    linear1: Linear
    dropout: Dropout
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm
    norm3: LayerNorm
    dropout1: Dropout
    dropout2: Dropout
    dropout3: Dropout
    activation: Layer
    norm_first: bool = static(default=False)

    @classmethod
    def init(
        cls,
        key: Tensor,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters; arguments and errors are those of `TransformerEncoderLayer.init`."""
        layer = activation_layer(cls, activation)
        self_key, cross_key, first_key, second_key = random.split(key, 4)
        options: Any = {"bias": bias, "dtype": dtype, "device": device}
        attention = partial(
            MultiheadAttention.init,
            embed_dim=d_model,
            num_heads=nhead,
            dropout=dropout,
            batch_first=batch_first,
            **options,
        )
        linear1 = Linear.init(first_key, d_model, dim_feedforward, **options)
        linear2 = Linear.init(second_key, dim_feedforward, d_model, **options)
        norm = partial(matching_norm, d_model, layer_norm_eps, bias, linear1.weight)
        drop = Dropout(dropout)
        return cls(
            attention(self_key),
            attention(cross_key),
            linear1,
            drop,
            linear2,
            *(norm(), norm(), norm()),
            *(drop, drop, drop),
            activation=layer,
            norm_first=norm_first,
        )


@applies(TransformerDecoderLayer)
def transformer_decoder_layer(
    p: TransformerDecoderLayer,
    tgt: Float[Tensor, "... d_model"],
    memory: Float[Tensor, "... d_model"],
    *,
    tgt_mask: Mask = None,
    memory_mask: Mask = None,
    tgt_key_padding_mask: Mask = None,
    memory_key_padding_mask: Mask = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
    key: Tensor | None = None,
) -> Float[Tensor, "... d_model"]:
    """As `transformer_encoder_layer`, with attention to `memory` between the two blocks.

    Args:
        p: the parameters.
        tgt: ``[target, batch, d_model]``, ``[batch, target, d_model]`` with `batch_first`, or ``[target, d_model]``.
        memory: the output of the encoder, likewise, with ``source`` positions.
        tgt_mask: the `attn_mask` of the self-attention.
        memory_mask: the `attn_mask` of the attention to `memory`, such as ``[target, source]``.
        tgt_key_padding_mask: ``[batch, target]``; True leaves a position out.
        memory_key_padding_mask: ``[batch, source]``, likewise.
        tgt_is_causal: whether a target position sees none after it; needs no mask. Default: False.
        memory_is_causal: whether target i sees the source positions 0 to i only. Default: False.
        key: random key of the dropouts; without one there are none.

    Raises:
        ShapeError: inputs or masks do not fit.
    """
    self_key, cross_key, feed_key = split_keys(key, 3)
    within = partial(attended, p.self_attn, p.dropout1, self_key, None, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
    across = partial(
        *(attended, p.multihead_attn, p.dropout2, cross_key, memory),
        *(memory_mask, memory_key_padding_mask, memory_is_causal),
    )
    x = residual(p, p.norm1, tgt, within)
    x = residual(p, p.norm2, x, across)
    return residual(p, p.norm3, x, partial(feed_forward, p, p.dropout3, feed_key))
