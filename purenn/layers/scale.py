"""A learned factor and summand for each channel of an image, the affine part of a normalisation by itself."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.layers._spatial import check_images
from purenn.tree import Layer, applies, container


@container
class LearnableScale(Layer):
    """A factor and a summand for each channel.

    Attributes:
        scale: the factors, ``[1, num_features, 1, 1]``.
        bias: the summands, ``[1, num_features, 1, 1]``.
    """

    scale: Float[Tensor, "1 num_features 1 1"]
    bias: Float[Tensor, "1 num_features 1 1"]

    @classmethod
    def init(
        cls, num_features: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """Factors 1 and summands 0; nothing is drawn.

        Args:
            num_features: number of channels.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: torch's default device.
        """
        shape = (1, num_features, 1, 1)
        return cls(torch.ones(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    @property
    def num_features(self) -> int:
        """Number of channels."""
        return self.scale.shape[-3]

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"{self.num_features}"


@applies(LearnableScale)
def learnable_scale(
    p: LearnableScale, x: Float[Tensor, "*batch num_features height width"]
) -> Float[Tensor, "*batch num_features height width"]:
    """``x * scale + bias``, channel by channel; the result has the shape of `x`.

    Args:
        p: the parameters.
        x: the input, ``[batch, channels, height, width]`` or ``[channels, height, width]``.

    Raises:
        ShapeError: `x` has another number of dimensions or channels: it would be broadcast to another shape.
    """
    check_images("learnable_scale", x, channels=p.scale.shape[-3])
    if x.ndim == 3:
        return x * p.scale.squeeze(0) + p.bias.squeeze(0)
    return x * p.scale + p.bias
