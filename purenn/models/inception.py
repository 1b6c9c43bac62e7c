"""The Inception module: convolutions of several sizes side by side, their results one above the other.

Names are those of module A in torchvision's Inception v3: ``branch1x1``, ``branch5x5_1`` and ``_2``,
``branch3x3dbl_1`` to ``_3`` and ``branch_pool``, each with ``conv.weight`` and ``bn.*``.
"""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.layers.pooling import AvgPool2d, avg_pool2d
from purenn.models._parts import he_conv2d, in_order, placed
from purenn.tree import Layer, applies, container, replace


@container
class NormalizedConv2d(Layer):
    """A convolution, its normalisation and a ReLU; see `normalized_conv2d`.

    Attributes:
        conv: the convolution, without bias.
        bn: its normalisation.
    """

    conv: Conv2d
    bn: BatchNorm2d

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        eps: float = 0.001,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the convolution from a normal distribution by fan-out.

        Args:
            key: random key.
            in_channels: channels of the input.
            out_channels: channels of the result, which has the input's height and width.
            kernel_size: height and width of the kernel, an odd number.
            eps: of the normalisation. Default: 0.001.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        where = placed(key, dtype, device)
        return cls(
            he_conv2d(key, in_channels, out_channels, kernel_size, **where),
            BatchNorm2d.init(out_channels, eps=eps, **where),
        )


@applies(NormalizedConv2d)
def normalized_conv2d(
    p: NormalizedConv2d, x: Float[Tensor, "batch in_channels height width"], *, train: bool = False
) -> tuple[Float[Tensor, "batch out_channels height width"], NormalizedConv2d]:
    """``relu(bn(conv(x)))``.

    Args:
        p: the parameters.
        x: the input.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    y, bn = batch_norm(p.bn, conv2d(p.conv, x), train=train)
    return y.relu(), replace(p, bn=bn)


@container
class Inception(Layer):
    """Four branches; see `inception`.

    Attributes:
        branch1x1: a 1 x 1 convolution to 64 channels.
        branch5x5_1: a 1 x 1 convolution to 48 channels,
        branch5x5_2: and a 5 x 5 convolution of those to 64.
        branch3x3dbl_1: a 1 x 1 convolution to 64 channels,
        branch3x3dbl_2: a 3 x 3 convolution of those to 96,
        branch3x3dbl_3: and another one, which together see as far as one of 5 x 5.
        branch_pool: a 1 x 1 convolution of the means over 3 x 3 pixels.
    """

    branch1x1: NormalizedConv2d
    branch5x5_1: NormalizedConv2d
    branch5x5_2: NormalizedConv2d
    branch3x3dbl_1: NormalizedConv2d
    branch3x3dbl_2: NormalizedConv2d
    branch3x3dbl_3: NormalizedConv2d
    branch_pool: NormalizedConv2d

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        pool_features: int = 32,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters. The result has ``64 + 64 + 96 + pool_features`` channels, which is 256 by default.

        Args:
            key: random key.
            in_channels: channels of the input.
            pool_features: channels of the branch with the pooling. Default: 32.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        sizes = (
            (in_channels, 64, 1),
            (in_channels, 48, 1),
            (48, 64, 5),
            (in_channels, 64, 1),
            (64, 96, 3),
            (96, 96, 3),
            (in_channels, pool_features, 1),
        )
        keys = random.split(key, len(sizes))
        return cls(
            *(NormalizedConv2d.init(k, *size, dtype=dtype, device=device) for k, size in zip(keys, sizes, strict=True))
        )


@applies(Inception)
def inception(
    p: Inception, x: Float[Tensor, "batch in_channels height width"], *, train: bool = False
) -> tuple[Float[Tensor, "batch out_channels height width"], Inception]:
    """The channels of all branches; height and width are those of the input.

    Args:
        p: the parameters.
        x: the input.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The channels of the 1 x 1, the 5 x 5, the double 3 x 3 and the pooled branch, in this order; and the container
        with the new averages.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.

    Source:
        Szegedy et al.: Going Deeper with Convolutions, 2015. This form: Szegedy et al.: Rethinking the Inception
        Architecture for Computer Vision, 2016, figure 5.
    """
    branches = {
        ("branch1x1",): x,
        ("branch5x5_1", "branch5x5_2"): x,
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"): x,
        ("branch_pool",): avg_pool2d(AvgPool2d(3, 1, 1), x),
    }
    results, changed = [], {}
    for names, start in branches.items():
        y, new = in_order([getattr(p, name) for name in names], start, train=train)
        results.append(y)
        changed.update(zip(names, new, strict=True))
    return torch.cat(results, 1), replace(p, **changed)
