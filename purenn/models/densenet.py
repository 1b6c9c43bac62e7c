"""The DenseNet: dense blocks, with what halves maps and channels between them.

Names are those of torchvision's models, so that their state dicts are this container's leaves, path by path:
``features.conv0.weight``, ``features.norm0.*``, ``features.denseblock1.denselayer1.norm1.*``, ``.conv1.weight``,
``.norm2.*`` and ``.conv2.weight``, ``features.transition1.norm.*`` and ``.conv.weight``, ``features.norm5.*``,
``classifier.weight`` and ``classifier.bias``. All indices count from 1.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.layers.conv import conv2d
from purenn.layers.linear import Linear, linear
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.layers.pooling import MaxPool2d
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import Images, he_conv2d, max_pooled, placed
from purenn.models.dense_block import DenseBlock, DenseLayer, Transition, densely, transition
from purenn.tree import Layer, applies, container, replace


@container
class DenseNet(Layer):
    """A densely connected network; see `densenet`.

    Attributes:
        features: by name the stem's convolution, normalisation and pooling, ``conv0``, ``norm0`` and ``pool0``; the
            layers of each dense block, ``denseblock1`` and so on, themselves by name; what stands between the blocks,
            ``transition1`` and so on; and the normalisation of the last maps, ``norm5`` however many blocks there are.
        classifier: the map from the channels' means to the classes.
    """

    features: dict[str, Any]
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
        features: dict[str, Any] = {
            "conv0": he_conv2d(stem_key, in_channels, width, 7, stride=2, **where),
            "norm0": BatchNorm2d.init(width, **where),
            "pool0": MaxPool2d(3, 2, 1),
        }
        channels = width
        for position, number in enumerate(num_layers, 1):
            block_key, transition_key = keys[2 * position - 2 : 2 * position]
            if position > 1:
                between = Transition.init(transition_key, channels, channels // 2, **where)
                features[f"transition{position - 1}"] = between
                channels //= 2
            block = DenseBlock.init(block_key, channels, number, growth, **options)
            features[f"denseblock{position}"] = _named(block.layers)
            channels += number * growth
        features["norm5"] = BatchNorm2d.init(channels, **where)
        return cls(features, Linear.init(head_key, channels, num_classes, **where))


@applies(DenseNet)
def densenet(
    p: DenseNet, x: Images, *, key: Tensor | None = None, train: bool = False
) -> tuple[Float[Tensor, "batch num_classes"], DenseNet]:
    """The classes' scores.

    Arguments, errors and source are those of `dense_block`; the second result is the container with the new averages.
    """
    features = dict(p.features)
    x, features["norm0"] = batch_norm(features["norm0"], conv2d(features["conv0"], x), train=train)
    x = max_pooled(features["pool0"], x.relu())
    number = sum(name.startswith("denseblock") for name in features)
    for position, block_key in enumerate(split_keys(key, number), 1):
        name = f"denseblock{position}"
        layers = [features[name][f"denselayer{n}"] for n in range(1, len(features[name]) + 1)]
        x, layers = densely(layers, x, key=block_key, train=train)
        features[name] = _named(layers)
        if position < number:
            name = f"transition{position}"
            x, features[name] = transition(features[name], x, train=train)
    x, features["norm5"] = batch_norm(features["norm5"], x, train=train)
    return linear(p.classifier, x.relu().mean((-2, -1))), replace(p, features=features)


def _named(layers: Sequence[DenseLayer]) -> dict[str, DenseLayer]:
    return {f"denselayer{position}": layer for position, layer in enumerate(layers, 1)}
