"""Primary capsules: a convolution whose channels are cut into vectors."""

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.layers.conv import Conv2d, conv2d
from purenn.ops import squash
from purenn.tree import Layer, applies, container, static


@container
class PrimaryCapsules(Layer):
    """The lowest layer of capsules: a convolution whose channels are cut into vectors.

    Attributes:
        conv: the convolution; it makes ``types * dim`` channels.
        dim: components of a capsule.
    """

    conv: Conv2d
    dim: int = static(default=8)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        *,
        types: int = 32,
        dim: int = 8,
        kernel_size: int = 9,
        stride: int = 2,
        padding: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "PrimaryCapsules":
        """Draw the convolution.

        Args:
            key: a random key.
            in_channels: channels of the input.
            types: capsules at each position. Default: 32.
            dim: components of a capsule. Default: 8.
            kernel_size: of the convolution. Default: 9.
            stride: of the convolution. Default: 2.
            padding: of the convolution. Default: 0.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: the key's.
        """
        conv = Conv2d.init(
            key, in_channels, types * dim, kernel_size, stride=stride, padding=padding, dtype=dtype, device=device
        )
        return cls(conv, dim)

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"dim={self.dim}"


@applies(PrimaryCapsules)
def primary_capsules(
    p: PrimaryCapsules, x: Float[Tensor, "*batch in_channels height width"]
) -> Float[Tensor, "*batch capsules dim"]:
    """Cut the feature maps into capsules and squash them.

    The components of a capsule are `dim` neighbouring **channels** at one position. (Reshaping the maps without moving
    the channel axis last would group neighbouring pixels instead.) Capsules are ordered by type, then by position.
    """
    maps = conv2d(p.conv, x)
    by_type = maps.unflatten(-3, (-1, p.dim))
    return squash(by_type.movedim(-3, -1).flatten(-4, -2))
