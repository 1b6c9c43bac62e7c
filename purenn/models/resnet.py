"""Residual networks: every block adds what it has learned to its own input.

Names are those of torchvision's models, so that their state dicts are this container's leaves, path by path:

- ``conv1.weight``; of the stem's normalisation ``bn1.weight``, ``.bias``, ``.running_mean``, ``.running_var`` and
  ``.num_batches_tracked``, which hold for every ``bn`` below;
- for stage s from 1 to 4 and block b from 0 on ``layer{s}.{b}.conv{i}.weight`` and ``layer{s}.{b}.bn{i}.*``, with i
  from 1 to 2, or to 3 where blocks are bottlenecks;
- where a block changes size or channels, which only the first of a stage does, ``layer{s}.{b}.downsample.0.weight``
  (the convolution) and ``layer{s}.{b}.downsample.1.*`` (its normalisation);
- ``fc.weight`` and ``fc.bias``.

``bridge.to_module(p).load_state_dict(state)`` reads such a state dict into the tensors of ``p``.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.linear import Linear, linear
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.layers.pooling import MaxPool2d
from purenn.models._parts import Images, he_conv2d, in_order, max_pooled, placed
from purenn.models.residual import BasicBlock, Bottleneck
from purenn.tree import Layer, applies, container, replace

# Blocks in each stage, and whether they are bottlenecks, by the number of layers with weights.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


@container
class ResNet(Layer):
    """A residual network; see `resnet`. The module's docstring lists the paths of its leaves.

    Attributes:
        conv1: the stem's convolution; it has a bias if there is no `bn1`.
        bn1: its normalisation, or None.
        maxpool: the stem's pooling, or None.
        layer1: the blocks of the first stage.
        layer2: of the second, which halves height and width and doubles the channels, like the next two. Stages may be
            empty.
        layer3: of the third.
        layer4: of the fourth.
        fc: the map from the channels' means to the classes, or None for a network that returns its last feature maps.
    """

    conv1: Conv2d
    bn1: BatchNorm2d | None
    maxpool: MaxPool2d | None
    layer1: tuple[BasicBlock | Bottleneck, ...]
    layer2: tuple[BasicBlock | Bottleneck, ...]
    layer3: tuple[BasicBlock | Bottleneck, ...]
    layer4: tuple[BasicBlock | Bottleneck, ...]
    fc: Linear | None

    @classmethod
    def init(
        cls,
        key: Tensor,
        blocks: Sequence[int],
        *,
        bottlenecks: bool = False,
        num_classes: int | None = 1000,
        in_channels: int = 3,
        width: int = 64,
        stem_norm: bool = True,
        small_images: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters; `of_depth` makes the published networks.

        ``ResNet.init(key, (3, 4, 6, 3), num_classes=None, stem_norm=False)`` has 21,284,608 parameters, and
        ``ResNet.init(key, (2, 2), num_classes=10, small_images=True)`` 676,682.

        Args:
            key: random key.
            blocks: how many blocks each of the up to four stages has.
            bottlenecks: whether blocks are of class `Bottleneck` and not of class `BasicBlock`. Default: False.
            num_classes: number of classes, or None for a network that returns feature maps. Default: 1000.
            in_channels: channels of the images. Default: 3.
            width: channels of the stem. Default: 64.
            stem_norm: whether the stem is normalised; otherwise its convolution has a bias. Default: True.
            small_images: whether the stem is a 3 x 3 convolution that keeps the images' size. By default it is a 7 x 7
                convolution and a pooling, which divide it by 4.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: there are no stages, or more than four.
        """
        if not 1 <= len(blocks) <= 4:
            raise ArgumentError(f"ResNet.init: blocks must be the numbers of blocks of 1 to 4 stages, got {blocks}.")
        where = placed(key, dtype, device)
        stem_key, head_key, *keys = random.split(key, 2 + len(blocks))
        kernel_size, stride = (3, 1) if small_images else (7, 2)
        block = Bottleneck if bottlenecks else BasicBlock
        stages: list[tuple[BasicBlock | Bottleneck, ...]] = [(), (), (), ()]
        channels = width
        for stage, (number, stage_key) in enumerate(zip(blocks, keys, strict=True)):
            made = []
            for position, block_key in enumerate(random.split(stage_key, number)):
                step = 2 if stage > 0 and position == 0 else 1
                made.append(block.init(block_key, channels, width * 2**stage, stride=step, **where))
                channels = width * 2**stage * block.expansion
            stages[stage] = tuple(made)
        return cls(
            he_conv2d(stem_key, in_channels, width, kernel_size, stride=stride, bias=not stem_norm, **where),
            BatchNorm2d.init(width, **where) if stem_norm else None,
            None if small_images else MaxPool2d(3, 2, 1),
            *stages,
            fc=None if num_classes is None else Linear.init(head_key, channels, num_classes, **where),
        )

    @classmethod
    def of_depth(cls, key: Tensor, depth: int, **options: Any) -> Self:
        """Draw one of the published networks.

        They have 11,689,512 (18), 21,797,672 (34), 25,557,032 (50), 44,549,160 (101) and 60,192,808 (152) parameters.
        The stride of a bottleneck is at its 3 x 3 convolution, as in torchvision (the paper has it at the first).

        Args:
            key: random key.
            depth: number of layers with weights: 18, 34, 50, 101 or 152.
            **options: of `init`.

        Raises:
            ArgumentError: there is no such depth.
        """
        if depth not in _DEPTHS:
            raise ArgumentError(
                f"ResNet.of_depth: depth must be one of {', '.join(map(str, _DEPTHS))}, got {depth!r}. Use ResNet.init "
                f"for other numbers of blocks."
            )
        blocks, bottlenecks = _DEPTHS[depth]
        return cls.init(key, blocks, bottlenecks=bottlenecks, **options)


@applies(ResNet)
def resnet(p: ResNet, x: Images, *, train: bool = False) -> tuple[Float[Tensor, "batch num_classes"] | Images, ResNet]:
    """The classes' scores, or the last feature maps of a network without `fc`.

    Args:
        p: the parameters.
        x: the images.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The scores, ``[batch, num_classes]``, or the maps; and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.

    Source:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016.
    """
    (*_, last), new = resnet_maps(p, x, train=train)
    return last if p.fc is None else linear(p.fc, last.mean((-2, -1))), new


def resnet_maps(p: ResNet, x: Images, *, train: bool = False) -> tuple[tuple[Images, ...], ResNet]:
    """The feature maps at the end of each of the four stages, the finest first, as a feature pyramid takes them.

    Arguments and errors are those of `resnet`; the second result is the container with the new averages.
    """
    changed: dict[str, Any] = {}
    x = conv2d(p.conv1, x)
    if p.bn1 is not None:
        x, changed["bn1"] = batch_norm(p.bn1, x, train=train)
    x = x.relu()
    if p.maxpool is not None:
        x = max_pooled(p.maxpool, x)
    maps = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x, changed[name] = in_order(getattr(p, name), x, train=train)
        maps.append(x)
    return tuple(maps), replace(p, **changed)
