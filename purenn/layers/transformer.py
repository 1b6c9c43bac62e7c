"""The Transformer: stacks of layers that encode a sequence, and that decode another one with its help.

Names, options, masks and parameters are those of `torch.nn`. In all masks here True is **left out**, and floating
numbers are added to the scores. Dropout happens if a key is given, which is split among all places that draw.
"""

from typing import Any, Self, TypedDict, Unpack

import optree
import torch
from jaxtyping import Float
from torch import Tensor

from purenn import initializers, random
from purenn.layers.norm import LayerNorm, layer_norm
from purenn.layers.transformer_layer import (
    Activation,
    Mask,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    matching_norm,
    split_keys,
    transformer_decoder_layer,
    transformer_encoder_layer,
)
from purenn.tree import Layer, applies, container


class LayerOptions(TypedDict, total=False):
    """The options of every layer of a stack; `TransformerEncoderLayer.init` describes them."""

    dim_feedforward: int
    dropout: float
    activation: Activation
    layer_norm_eps: float
    batch_first: bool
    norm_first: bool
    bias: bool
    dtype: torch.dtype | None
    device: torch.device | str | None


@container
class TransformerEncoder(Layer):
    """A stack of encoder layers; see `transformer_encoder`.

    Attributes:
        layers: the layers.
        norm: normalisation of the result, or None.
    """

    layers: tuple[TransformerEncoderLayer, ...]
    norm: LayerNorm | None

    @classmethod
    def init(
        cls,
        key: Tensor,
        num_layers: int,
        d_model: int,
        nhead: int,
        *,
        norm: bool = False,
        **options: Unpack[LayerOptions],
    ) -> Self:
        """Draw every layer with a key of its own; torch's stack starts with copies of one layer.

        Args:
            key: random key.
            num_layers: number of layers.
            d_model: size of the inputs' last dimension.
            nhead: number of heads.
            norm: whether the result is normalised. Default: False.
            **options: of `TransformerEncoderLayer.init`.

        Raises:
            ArgumentError: as `TransformerEncoderLayer.init`.
        """
        return cls(*_stack(TransformerEncoderLayer, key, num_layers, d_model, nhead, norm, options))


@applies(TransformerEncoder)
def transformer_encoder(
    p: TransformerEncoder,
    src: Float[Tensor, "... d_model"],
    *,
    mask: Mask = None,
    src_key_padding_mask: Mask = None,
    is_causal: bool = False,
    key: Tensor | None = None,
) -> Float[Tensor, "... d_model"]:
    """Apply the layers in order, all with the same masks, and then the normalisation.

    Args:
        p: the layers.
        src: as in `transformer_encoder_layer`.
        mask: its `src_mask`: here, too, True leaves a pair out.
        src_key_padding_mask: ``[batch, length]``; True leaves a position out.
        is_causal: whether a position sees none after it; needs no mask. Default: False.
        key: random key of the dropouts; without one there are none.

    Raises:
        ShapeError: inputs or masks do not fit.
    """
    options: Any = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
    for layer, layer_key in zip(p.layers, split_keys(key, len(p.layers)), strict=True):
        src = transformer_encoder_layer(layer, src, **options, key=layer_key)
    return src if p.norm is None else layer_norm(p.norm, src)


@container
class TransformerDecoder(Layer):
    """A stack of decoder layers; see `transformer_decoder`.

    Attributes:
        layers: the layers.
        norm: normalisation of the result, or None.
    """

    layers: tuple[TransformerDecoderLayer, ...]
    norm: LayerNorm | None

    @classmethod
    def init(
        cls,
        key: Tensor,
        num_layers: int,
        d_model: int,
        nhead: int,
        *,
        norm: bool = False,
        **options: Unpack[LayerOptions],
    ) -> Self:
        """Draw every layer with a key of its own; arguments and errors are those of `TransformerEncoder.init`."""
        return cls(*_stack(TransformerDecoderLayer, key, num_layers, d_model, nhead, norm, options))


@applies(TransformerDecoder)
def transformer_decoder(
    p: TransformerDecoder,
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
    """Apply the layers in order, all with the same memory and masks, and then the normalisation.

    Arguments and errors are those of `transformer_decoder_layer`.
    """
    options: Any = {
        "tgt_mask": tgt_mask,
        "memory_mask": memory_mask,
        "tgt_key_padding_mask": tgt_key_padding_mask,
        "memory_key_padding_mask": memory_key_padding_mask,
        "tgt_is_causal": tgt_is_causal,
        "memory_is_causal": memory_is_causal,
    }
    for layer, layer_key in zip(p.layers, split_keys(key, len(p.layers)), strict=True):
        tgt = transformer_decoder_layer(layer, tgt, memory, **options, key=layer_key)
    return tgt if p.norm is None else layer_norm(p.norm, tgt)


@container
class Transformer(Layer):
    """An encoder and a decoder that looks at its output; see `transformer`.

    Attributes:
        encoder: the stack that reads the source.
        decoder: the stack that writes the target.
    """

    encoder: TransformerEncoder
    decoder: TransformerDecoder

    @classmethod
    def init(
        cls,
        key: Tensor,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        **options: Unpack[LayerOptions],
    ) -> Self:
        """Draw all matrices from Xavier's uniform distribution; both stacks have a normalisation at the end.

        Args:
            key: random key.
            d_model: size of the inputs' last dimension. Default: 512.
            nhead: number of heads. Default: 8.
            num_encoder_layers: number of the encoder's layers. Default: 6.
            num_decoder_layers: number of the decoder's layers. Default: 6.
            **options: of `TransformerEncoderLayer.init`.

        Raises:
            ArgumentError: as `TransformerEncoderLayer.init`.
        """
        encoder_key, decoder_key, matrix_key = random.split(key, 3)
        p = cls(
            TransformerEncoder.init(encoder_key, num_encoder_layers, d_model, nhead, norm=True, **options),
            TransformerDecoder.init(decoder_key, num_decoder_layers, d_model, nhead, norm=True, **options),
        )
        leaves, structure = optree.tree_flatten(p)  # pyright: ignore[reportArgumentType]
        keys = random.split(matrix_key, len(leaves))
        draw = initializers.xavier_uniform
        leaves = [
            draw(leaf_key, leaf.shape, dtype=leaf.dtype, device=leaf.device) if leaf.dim() > 1 else leaf
            for leaf, leaf_key in zip(leaves, keys, strict=True)
        ]
        return optree.tree_unflatten(structure, leaves)  # pyright: ignore[reportReturnType]


@applies(Transformer)
def transformer(
    p: Transformer,
    src: Float[Tensor, "... d_model"],
    tgt: Float[Tensor, "... d_model"],
    *,
    src_mask: Mask = None,
    tgt_mask: Mask = None,
    memory_mask: Mask = None,
    src_key_padding_mask: Mask = None,
    tgt_key_padding_mask: Mask = None,
    memory_key_padding_mask: Mask = None,
    src_is_causal: bool = False,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
    key: Tensor | None = None,
) -> Float[Tensor, "... d_model"]:
    """The decoder's result for the target, with the encoder's result for the source as its memory.

    Args:
        p: the two stacks.
        src: ``[source, batch, d_model]``, ``[batch, source, d_model]`` with `batch_first`, or ``[source, d_model]``.
        tgt: the same with ``target`` positions.
        src_mask: the `mask` of `transformer_encoder`.
        tgt_mask: as in `transformer_decoder_layer`, like all that follow.
        memory_mask: of the attention from the target to the source.
        src_key_padding_mask: ``[batch, source]``; True leaves a position out.
        tgt_key_padding_mask: ``[batch, target]``.
        memory_key_padding_mask: ``[batch, source]``.
        src_is_causal: whether a source position sees none after it. Default: False.
        tgt_is_causal: whether a target position sees none after it. Default: False.
        memory_is_causal: whether target i sees the source positions 0 to i only. Default: False.
        key: random key of the dropouts; without one there are none.

    Raises:
        ShapeError: inputs or masks do not fit.
    """
    encoder_key, decoder_key = split_keys(key, 2)
    memory = transformer_encoder(
        p.encoder,
        src,
        mask=src_mask,
        src_key_padding_mask=src_key_padding_mask,
        is_causal=src_is_causal,
        key=encoder_key,
    )
    return transformer_decoder(
        p.decoder,
        tgt,
        memory,
        tgt_mask=tgt_mask,
        memory_mask=memory_mask,
        tgt_key_padding_mask=tgt_key_padding_mask,
        memory_key_padding_mask=memory_key_padding_mask,
        tgt_is_causal=tgt_is_causal,
        memory_is_causal=memory_is_causal,
        key=decoder_key,
    )


def _stack(
    cls: Any, key: Tensor, num_layers: int, d_model: int, nhead: int, norm: bool, options: LayerOptions
) -> tuple[tuple[Any, ...], LayerNorm | None]:
    layers = tuple(cls.init(layer_key, d_model, nhead, **options) for layer_key in random.split(key, num_layers))
    if not norm:
        return layers, None
    eps, bias = options.get("layer_norm_eps", 1e-5), options.get("bias", True)
    return layers, matching_norm(d_model, eps, bias, layers[0].linear1.weight)
