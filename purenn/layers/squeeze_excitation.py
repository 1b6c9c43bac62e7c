"""Squeeze and excitation: the mean of each channel decides how much of each channel passes."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.layers._spatial import check_images
from purenn.layers.linear import Linear, linear
from purenn.tree import Layer, applies, container


@container
class SqueezeExcitation(Layer):
    """A factor between 0 and 1 for each channel, computed from the means of all.

    Attributes:
        squeeze: from the channels to fewer features.
        excite: from those back to the channels.
    """

    squeeze: Linear
    excite: Linear

    @classmethod
    def init(
        cls,
        key: Tensor,
        channels: int,
        reduction: int = 16,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw both maps as `Linear.init` does.

        Args:
            key: random key.
            channels: number of channels.
            reduction: how many times fewer features there are between the two maps.
            bias: whether the maps have biases.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `reduction` is not between 1 and `channels`, so that no feature would be left.
        """
        if not 1 <= reduction <= channels:
            raise ArgumentError(
                f"SqueezeExcitation.init: reduction must lie between 1 and channels={channels}, got {reduction}: "
                f"channels // reduction features are left between the two maps. Use a smaller reduction."
            )
        squeeze_key, excite_key = random.split(key)
        features = channels // reduction
        return cls(
            Linear.init(squeeze_key, channels, features, bias=bias, dtype=dtype, device=device),
            Linear.init(excite_key, features, channels, bias=bias, dtype=dtype, device=device),
        )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.squeeze.in_features


@applies(SqueezeExcitation)
def squeeze_excitation(
    p: SqueezeExcitation, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels height width"]:
    """``x * sigmoid(excite(relu(squeeze(mean of x over each channel))))``.

    Args:
        p: the parameters.
        x: the input, ``[batch, channels, height, width]`` or ``[channels, height, width]``.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.

    Source:
        Hu, Shen, Sun: Squeeze-and-Excitation Networks, 2018.
    """
    check_images("squeeze_excitation", x, channels=p.squeeze.weight.shape[-1])
    passes = torch.sigmoid(linear(p.excite, torch.relu(linear(p.squeeze, x.mean((-2, -1))))))
    return x * passes.unsqueeze(-1).unsqueeze(-1)
