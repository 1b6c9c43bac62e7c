"""Dense blocks: every layer sees the maps of all layers before it, and adds a few of its own."""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.dropout import Dropout, dropout
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.layers.pooling import AvgPool2d, avg_pool2d
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import Images, he_conv2d, placed
from purenn.tree import Layer, applies, container, replace


@container
class DenseLayer(Layer):
    """A 1 x 1 and a 3 x 3 convolution, each after a normalisation and a ReLU; see `dense_layer`.

    Attributes:
        norm1: normalisation of the input.
        conv1: the 1 x 1 convolution, which spares the other one channels.
        norm2: normalisation of its result.
        conv2: the 3 x 3 convolution to the new maps.
        dropout: of the new maps.
    """

    norm1: BatchNorm2d
    conv1: Conv2d
    norm2: BatchNorm2d
    conv2: Conv2d
    dropout: Dropout

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        growth: int,
        *,
        bottleneck: int = 4,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolutions, which have no bias, from a normal distribution by fan-out.

        Args:
            key: random key.
            in_channels: channels of the input.
            growth: number of new maps.
            bottleneck: how many times as many channels there are between the convolutions. Default: 4.
            dropout: probability of a zero, if a key is given. Default: 0.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `dropout` is no probability.
        """
        where = placed(key, dtype, device)
        first_key, second_key = random.split(key)
        between = bottleneck * growth
        return cls(
            BatchNorm2d.init(in_channels, **where),
            he_conv2d(first_key, in_channels, between, 1, **where),
            BatchNorm2d.init(between, **where),
            he_conv2d(second_key, between, growth, 3, **where),
            Dropout(dropout),
        )


@applies(DenseLayer)
def dense_layer(
    p: DenseLayer, x: Images, *, key: Tensor | None = None, train: bool = False
) -> tuple[Float[Tensor, "batch growth height width"], DenseLayer]:
    """The new maps alone: ``conv2(relu(norm2(conv1(relu(norm1(x))))))``.

    Args:
        p: the parameters.
        x: all maps so far.
        key: random key of the dropout; without one there is none.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    y, norm1 = batch_norm(p.norm1, x, train=train)
    y, norm2 = batch_norm(p.norm2, conv2d(p.conv1, y.relu()), train=train)
    return dropout(p.dropout, conv2d(p.conv2, y.relu()), key=key), replace(p, norm1=norm1, norm2=norm2)


@container
class DenseBlock(Layer):
    """Layers of which each sees the maps of all before it; see `dense_block`.

    Attributes:
        layers: the layers.
    """

    layers: tuple[DenseLayer, ...]

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        num_layers: int,
        growth: int,
        *,
        bottleneck: int = 4,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the layers. The result has ``in_channels + num_layers * growth`` channels.

        Args:
            key: random key.
            in_channels: channels of the input.
            num_layers: number of layers.
            growth: number of maps that each layer adds.
            bottleneck: as in `DenseLayer.init`, like the rest.
            dropout: probability of a zero, if a key is given. Default: 0.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `dropout` is no probability.
        """
        where = placed(key, dtype, device)
        return cls(
            tuple(
                DenseLayer.init(k, in_channels + n * growth, growth, bottleneck=bottleneck, dropout=dropout, **where)
                for n, k in enumerate(random.split(key, num_layers))
            )
        )


@applies(DenseBlock)
def dense_block(
    p: DenseBlock, x: Images, *, key: Tensor | None = None, train: bool = False
) -> tuple[Float[Tensor, "batch out_channels height width"], DenseBlock]:
    """The input's maps, followed by those of the layers in order.

    Args:
        p: the parameters.
        x: the input.
        key: random key of the dropouts; without one there are none.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.

    Source:
        Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, 2017.
    """
    x, layers = densely(p.layers, x, key=key, train=train)
    return x, replace(p, layers=layers)


def densely(
    layers: Sequence[DenseLayer], x: Tensor, *, key: Tensor | None, train: bool
) -> tuple[Tensor, tuple[DenseLayer, ...]]:
    """What `dense_block` computes, for layers without a block around them."""
    new = []
    for layer, layer_key in zip(layers, split_keys(key, len(layers)), strict=True):
        y, layer = dense_layer(layer, x, key=layer_key, train=train)
        x = torch.cat((x, y), 1)
        new.append(layer)
    return x, tuple(new)


@container
class Transition(Layer):
    """What stands between dense blocks; see `transition`.

    Attributes:
        norm: normalisation of the input.
        conv: a 1 x 1 convolution, without bias.
        pool: what halves height and width.
    """

    norm: BatchNorm2d
    conv: Conv2d
    pool: AvgPool2d

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolution as `DenseLayer.init` does.

        Args:
            key: random key.
            in_channels: channels of the input.
            out_channels: channels of the result.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        where = placed(key, dtype, device)
        norm = BatchNorm2d.init(in_channels, **where)
        return cls(norm, he_conv2d(key, in_channels, out_channels, 1, **where), AvgPool2d(2))


@applies(Transition)
def transition(p: Transition, x: Images, *, train: bool = False) -> tuple[Images, Transition]:
    """Normalisation, ReLU, 1 x 1 convolution, means over 2 x 2 pixels.

    Args:
        p: the parameters.
        x: the input.
        train: as in `dense_block`.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    y, norm = batch_norm(p.norm, x, train=train)
    return avg_pool2d(p.pool, conv2d(p.conv, y.relu())), replace(p, norm=norm)
