"""The DenseNet: dense blocks, with what halves maps and channels between them."""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.linear import Linear, linear
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.layers.pooling import MaxPool2d
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import Images, he_conv2d, max_pooled, placed
from purenn.models.dense_block import DenseBlock, Transition, dense_block, transition
from purenn.tree import Layer, applies, container, replace


@container
class DenseNet(Layer):
    """A densely connected network; see `densenet`.

    Attributes:
        conv: the stem's convolution.
        norm: its normalisation.
        pool: its pooling.
        blocks: the dense blocks.
        transitions: what stands between them, one fewer.
        last_norm: normalisation of the last maps.
        classifier: the map from the channels' means to the classes.
    """

    conv: Conv2d
    norm: BatchNorm2d
    pool: MaxPool2d
    blocks: tuple[DenseBlock, ...]
    transitions: tuple[Transition, ...]
    last_norm: BatchNorm2d
    classifier: Linear

    @classmethod
    def init(
        cls,
        key: Tensor,
        num_layers: Sequence[int] = (6, 12, 24, 16),
        *,
        growth: int = 32,
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        bottleneck: int = 4,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters. The defaults are those of DenseNet-121, with 7,978,856 of them.

        Args:
            key: random key.
            num_layers: number of layers of each dense block. Default: (6, 12, 24, 16).
            growth: number of maps that each layer adds. Default: 32.
            width: channels of the stem. Default: 64.
            num_classes: number of classes. Default: 1000.
            in_channels: channels of the images. Default: 3.
            bottleneck: as in `DenseLayer.init`, like the rest. Default: 4.
            dropout: probability of a zero, if a key is given. Default: 0.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: there is no block, or `dropout` is no probability.
        """
        if not num_layers:
            raise ArgumentError("DenseNet.init: num_layers must say how many layers each block has, got none.")
        where = placed(key, dtype, device)
        options = {"bottleneck": bottleneck, "dropout": dropout, **where}
        stem_key, head_key, *keys = random.split(key, 2 + 2 * len(num_layers))
        blocks, transitions, channels = [], [], width
        for number, block_key, transition_key in zip(num_layers, keys[::2], keys[1::2], strict=True):
            if blocks:
                transitions.append(Transition.init(transition_key, channels, channels // 2, **where))
                channels //= 2
            blocks.append(DenseBlock.init(block_key, channels, number, growth, **options))
            channels += number * growth
        return cls(
            he_conv2d(stem_key, in_channels, width, 7, stride=2, **where),
            BatchNorm2d.init(width, **where),
            MaxPool2d(3, 2, 1),
            tuple(blocks),
            tuple(transitions),
            BatchNorm2d.init(channels, **where),
            Linear.init(head_key, channels, num_classes, **where),
        )


@applies(DenseNet)
def densenet(
    p: DenseNet, x: Images, *, key: Tensor | None = None, train: bool = False
) -> tuple[Float[Tensor, "batch num_classes"], DenseNet]:
    """The classes' scores.

    Arguments, errors and source are those of `dense_block`; the second result is the container with the new averages.
    """
    x, norm = batch_norm(p.norm, conv2d(p.conv, x), train=train)
    x = max_pooled(p.pool, x.relu())
    blocks, transitions = [], []
    for position, (block, block_key) in enumerate(zip(p.blocks, split_keys(key, len(p.blocks)), strict=True)):
        x, block = dense_block(block, x, key=block_key, train=train)
        blocks.append(block)
        if position < len(p.transitions):
            x, new = transition(p.transitions[position], x, train=train)
            transitions.append(new)
    x, last_norm = batch_norm(p.last_norm, x, train=train)
    new = replace(p, norm=norm, blocks=tuple(blocks), transitions=tuple(transitions), last_norm=last_norm)
    return linear(p.classifier, x.relu().mean((-2, -1))), new
