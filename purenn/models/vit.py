"""The vision Transformer: an image as a sequence of patches, and one more vector that gathers what it shows.

Names are those of torchvision's models (not those of timm or Hugging Face). The leaves, with their shapes for B/16:

- ``class_token`` [1, 1, 768], ``conv_proj.weight`` [768, 3, 16, 16], ``conv_proj.bias``;
- ``encoder.pos_embedding`` [1, 197, 768];
- for block i from 0 to 11, below ``encoder.layers.encoder_layer_{i}``: ``ln_1.*``, ``self_attention.in_proj_weight``
  [2304, 768], ``self_attention.in_proj_bias``, ``self_attention.out_proj.*`` [768, 768], ``ln_2.*``, ``mlp.0.*``
  [3072, 768], ``mlp.3.*`` [768, 3072] (older files call these two ``mlp.linear_1`` and ``mlp.linear_2``);
- ``encoder.ln.*``, ``heads.head.*`` [1000, 768];

where ``*`` stands for ``weight`` and ``bias``. ``bridge.to_module(p).load_state_dict(state)`` reads such a state dict
into the tensors of ``p``.
"""

import math
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import initializers, random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.activation_smooth import GELU, gelu
from purenn.layers.attention import MultiheadAttention, multihead_attention
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.dropout import Dropout, dropout
from purenn.layers.linear import Linear, linear
from purenn.layers.norm import LayerNorm, layer_norm
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import placed
from purenn.tree import Layer, applies, container, static


@container
class ViTBlock(Layer):
    """Attention and hidden features, each around a residual connection; see `vit_block`.

    Attributes:
        ln_1: normalisation before the attention.
        self_attention: the attention.
        dropout: of its result.
        ln_2: normalisation before the hidden features.
        mlp: the map to the hidden features, GELU, dropout, the map back, dropout.
    """

    ln_1: LayerNorm
    self_attention: MultiheadAttention
    dropout: Dropout
    ln_2: LayerNorm
    mlp: tuple[Linear, GELU, Dropout, Linear, Dropout]

    @classmethod
    def init(
        cls,
        key: Tensor,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the maps from Xavier's uniform distribution; the biases of `mlp` from N(0, 1e-6^2), the others are 0.

        Args:
            key: random key.
            dim: length of each position's vector.
            num_heads: number of heads, a divisor of `dim`.
            mlp_dim: number of hidden features.
            dropout: rate of the dropouts, but for the attention's weights. Default: 0.
            attention_dropout: rate of that of the attention's weights. Default: 0.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `dim` is not a multiple of `num_heads`, or a rate is no probability.
        """
        where = placed(key, dtype, device)
        attention_key, first_key, second_key = random.split(key, 3)
        attention = MultiheadAttention.init(
            attention_key, dim, num_heads, dropout=attention_dropout, batch_first=True, **where
        )
        scheme = (initializers.xavier_uniform, _nearly_zero)
        drop = Dropout(dropout)
        return cls(
            LayerNorm.init(dim, eps=1e-6, **where),
            attention,
            drop,
            LayerNorm.init(dim, eps=1e-6, **where),
            (
                Linear.init(first_key, dim, mlp_dim, init=scheme, **where),
                GELU(),
                drop,
                Linear.init(second_key, mlp_dim, dim, init=scheme, **where),
                drop,
            ),
        )


@applies(ViTBlock)
def vit_block(
    p: ViTBlock, x: Float[Tensor, "*batch length dim"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch length dim"]:
    """``x + self_attention(ln_1(x))``, and then ``x + mlp(ln_2(x))``.

    Args:
        p: the parameters.
        x: ``[batch, length, dim]`` or ``[length, dim]``.
        key: random key of the dropouts; without one there are none.

    Raises:
        ShapeError: `x` has another number of dimensions or another size.
    """
    weights_key, attention_key, hidden_key, result_key = split_keys(key, 4)
    y, _ = multihead_attention(p.self_attention, layer_norm(p.ln_1, x), need_weights=False, key=weights_key)
    x = x + dropout(p.dropout, y, key=attention_key)
    first, activation, hidden_dropout, second, result_dropout = p.mlp
    hidden = gelu(activation, linear(first, layer_norm(p.ln_2, x)))
    y = linear(second, dropout(hidden_dropout, hidden, key=hidden_key))
    return x + dropout(result_dropout, y, key=result_key)


@container
class ViTEncoder(Layer):
    """The blocks, and what stands around them; see `vit_encoder`.

    Attributes:
        pos_embedding: a vector for each position, ``[1, length, dim]``.
        dropout: of the sum of input and positions.
        layers: the blocks, by their names ``encoder_layer_0``, ``encoder_layer_1`` and so on.
        ln: normalisation of the result.
    """

    pos_embedding: Float[Tensor, "1 length dim"]
    dropout: Dropout
    layers: dict[str, ViTBlock]
    ln: LayerNorm


@applies(ViTEncoder)
def vit_encoder(
    p: ViTEncoder, x: Float[Tensor, "*batch length dim"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch length dim"]:
    """Add the positions, apply the blocks in order, normalise; arguments and errors are those of `vit_block`."""
    drop_key, *block_keys = split_keys(key, len(p.layers) + 1)
    x = dropout(p.dropout, x + p.pos_embedding.squeeze(0), key=drop_key)
    for i, block_key in enumerate(block_keys):
        x = vit_block(p.layers[f"encoder_layer_{i}"], x, key=block_key)
    return layer_norm(p.ln, x)


@container
class ViT(Layer):
    """A vision Transformer; see `vit`. The module's docstring lists the paths of its leaves.

    Attributes:
        class_token: the vector that gathers, ``[1, 1, dim]``.
        conv_proj: the map from each patch to a vector, as a convolution whose stride is its size.
        encoder: what happens to the sequence.
        heads: under the name ``head``, the map from the gathering vector to the classes.
        image_size: height and width of the images.
    """

    class_token: Float[Tensor, "1 1 dim"]
    conv_proj: Conv2d
    encoder: ViTEncoder
    heads: dict[str, Linear]
    image_size: tuple[int, int] = static()

    @classmethod
    def init(
        cls,
        key: Tensor,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        in_channels: int = 3,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters. The defaults are those of ViT-B/16, with 86,567,656 of them.

        Args:
            key: random key.
            image_size: height and width of the images, one number if both are the same. Default: 224.
            patch_size: height and width of a patch; it divides those of the images. Default: 16.
            num_classes: number of classes, whose scores start at 0. Default: 1000.
            in_channels: channels of the images. Default: 3.
            dim: length of each position's vector. Default: 768.
            depth: number of blocks. Default: 12.
            num_heads: number of heads, a divisor of `dim`. Default: 12.
            mlp_dim: number of hidden features of a block. Default: 3072.
            dropout: rate of the dropouts, if a key is given, but for the attention's weights. Default: 0.
            attention_dropout: rate of that of the attention's weights. Default: 0.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: sizes do not divide each other, or a rate is no probability.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % patch_size or width % patch_size:
            raise ArgumentError(
                f"ViT.init: an image of {height}x{width} cannot be cut into patches of {patch_size}x{patch_size}. "
                f"Choose sizes that are multiples of patch_size."
            )
        where = placed(key, dtype, device)
        patch_key, position_key, head_key, blocks_key = random.split(key, 4)
        length = 1 + (height // patch_size) * (width // patch_size)
        fan_in = in_channels * patch_size**2
        patches = initializers.trunc_normal(
            patch_key, (dim, in_channels, patch_size, patch_size), std=math.sqrt(1 / fan_in), **where
        )
        options = {"dropout": dropout, "attention_dropout": attention_dropout, **where}
        blocks = {
            f"encoder_layer_{i}": ViTBlock.init(k, dim, num_heads, mlp_dim, **options)
            for i, k in enumerate(random.split(blocks_key, depth))
        }
        positions = initializers.normal(position_key, (1, length, dim), std=0.02, **where)
        return cls(
            torch.zeros(1, 1, dim, **where),
            Conv2d(patches, torch.zeros(dim, **where), stride=(patch_size, patch_size), padding=(0, 0)),
            ViTEncoder(positions, Dropout(dropout), blocks, LayerNorm.init(dim, eps=1e-6, **where)),
            {"head": Linear.init(head_key, dim, num_classes, init=(initializers.zeros, initializers.zeros), **where)},
            (height, width),
        )


@applies(ViT)
def vit(
    p: ViT, x: Float[Tensor, "*batch channels height width"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch num_classes"]:
    """The classes' scores.

    Args:
        p: the parameters.
        x: the images, ``[batch, channels, height, width]``, or one, ``[channels, height, width]``.
        key: random key of the dropouts; without one there are none.

    Raises:
        ShapeError: the images have not the shape that the model was made for.

    Source:
        Dosovitskiy et al.: An Image is Worth 16x16 Words, 2021.
    """
    if tuple(x.shape[-2:]) != tuple(p.image_size):
        raise ShapeError(
            f"vit: this model was made for images of {p.image_size[0]}x{p.image_size[1]} pixels, got an input of shape "
            f"{list(x.shape)}. Resize the images, or init the model with another image_size."
        )
    patches = conv2d(p.conv_proj, x).flatten(-2).mT
    token = p.class_token.squeeze(0).expand(*patches.shape[:-2], 1, -1)
    y = vit_encoder(p.encoder, torch.cat((token, patches), -2), key=key)
    return linear(p.heads["head"], y[..., 0, :])


def _nearly_zero(
    key: Tensor, shape: tuple[int, ...], *, dtype: torch.dtype | None, device: torch.device | str | None
) -> Tensor:
    return initializers.normal(key, shape, std=1e-6, dtype=dtype, device=device)
