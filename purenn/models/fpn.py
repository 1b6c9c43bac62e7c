"""The feature pyramid: what the coarse maps of a network know is handed down to the fine ones.

Names are those of torchvision's pyramid: ``inner_blocks.0.0.weight`` and ``layer_blocks.0.0.weight``, and so on, each
convolution in a tuple of its own.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn import initializers, random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.conv import Conv2d, conv2d
from purenn.models._parts import placed
from purenn.tree import Layer, applies, container, static

Maps = Float[Tensor, "*batch channels height width"]


@container
class FPN(Layer):
    """A feature pyramid; see `fpn`.

    Attributes:
        inner_blocks: for each of the network's maps, the finest first, a 1 x 1 convolution to a common number of
            channels.
        layer_blocks: for each level a 3 x 3 convolution of the sum.
        extra_level: whether there is one more level, which takes every second pixel of the coarsest.
    """

    inner_blocks: tuple[tuple[Conv2d], ...]
    layer_blocks: tuple[tuple[Conv2d], ...]
    extra_level: bool = static(default=False)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        extra_level: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the weights from Kaiming's uniform distribution of gain 1; biases are 0.

        Args:
            key: random key.
            in_channels: channels of each of the network's maps, the finest first; (256, 512, 1024, 2048) for a
                ResNet-50.
            out_channels: channels of every level of the pyramid. Default: 256.
            extra_level: whether there is one more level, at half the size of the coarsest. Default: False.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: there are no maps.
        """
        if not in_channels:
            raise ArgumentError("FPN.init: in_channels must have the channels of each of the network's maps, got none.")
        where = placed(key, dtype, device)
        keys = random.split(key, 2 * len(in_channels))
        number = len(in_channels)
        return cls(
            tuple((_conv(k, n, out_channels, 1, where),) for k, n in zip(keys[:number], in_channels, strict=True)),
            tuple((_conv(k, out_channels, out_channels, 3, where),) for k in keys[number:]),
            extra_level,
        )


@applies(FPN)
def fpn(p: FPN, maps: Sequence[Maps]) -> tuple[Maps, ...]:
    """The levels of the pyramid, the finest first, all with the same number of channels.

    Each is a convolution of the sum of the network's maps of that size and of the next coarser sum, enlarged by
    repetition of its pixels to that size (which need not be exactly twice its own).

    Args:
        p: the parameters.
        maps: the network's maps, the finest first, such as `resnet_maps` returns.

    Raises:
        ShapeError: another number of maps, or maps of another number of dimensions or channels.

    Source:
        Lin et al.: Feature Pyramid Networks for Object Detection, 2017.
    """
    if len(maps) != len(p.inner_blocks):
        raise ShapeError(
            f"fpn: expected {len(p.inner_blocks)} maps, the finest first, got {len(maps)}. Init the pyramid with the "
            f"channels of all maps that it shall take."
        )
    levels: list[Tensor] = []
    above = None
    backwards = (reversed(part) for part in (p.inner_blocks, p.layer_blocks, maps))
    for (lateral,), (output,), x in zip(*backwards, strict=True):
        y = conv2d(lateral, x)
        above = y if above is None else y + _enlarged(above, y)
        levels.insert(0, conv2d(output, above))
    if p.extra_level:
        levels.append(levels[-1][..., ::2, ::2])
    return tuple(levels)


def _conv(key: Tensor, in_channels: int, out_channels: int, kernel_size: int, where: dict[str, Any]) -> Conv2d:
    shape = (out_channels, in_channels, kernel_size, kernel_size)
    weight = initializers.kaiming_uniform(key, shape, nonlinearity="linear", **where)
    bias = torch.zeros(out_channels, dtype=weight.dtype, device=weight.device)
    return Conv2d(weight, bias, padding=(kernel_size // 2, kernel_size // 2))


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    return F.interpolate(x.unsqueeze(0), size).squeeze(0) if x.dim() == 3 else F.interpolate(x, size)
