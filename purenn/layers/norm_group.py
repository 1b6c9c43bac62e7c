"""Group normalisation: the statistics of groups of channels of one example; no batch, no state."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import ops
from purenn.errors import ArgumentError, ShapeError
from purenn.tree import Layer, applies, container, static


@container
class GroupNorm(Layer):
    """Group normalisation; see `group_norm`.

    Attributes:
        weight: factor of each channel, ``[num_channels]``, or None.
        bias: summand of each channel, ``[num_channels]``, or None.
        num_groups: into how many groups of neighbours to divide the channels.
        eps: added to the variance.
    """

    weight: Float[Tensor, " num_channels"] | None
    bias: Float[Tensor, " num_channels"] | None
    num_groups: int = static()
    eps: float = static(default=1e-5)

    @classmethod
    def init(
        cls,
        num_groups: int,
        num_channels: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer that changes nothing but mean and variance; nothing is drawn.

        Args:
            num_groups: into how many groups to divide the channels.
            num_channels: number of channels.
            eps: added to the variance. Default: 1e-5.
            affine: whether channels have a factor and a summand. Default: True.
            bias: whether an affine layer has the summand. Default: True.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: torch's default device.

        Raises:
            ArgumentError: the channels cannot be divided into so many groups.
        """
        if num_groups < 1 or num_channels % num_groups:
            raise ArgumentError(
                f"GroupNorm.init: num_channels={num_channels} must be a multiple of num_groups={num_groups}, which "
                f"must be positive."
            )
        weight = torch.ones(num_channels, dtype=dtype, device=device) if affine else None
        summand = torch.zeros(num_channels, dtype=dtype, device=device) if affine and bias else None
        return cls(weight, summand, num_groups, eps)

    @property
    def num_channels(self) -> int | None:
        """Number of channels, None where no parameter says it."""
        return None if self.weight is None else self.weight.shape[-1]

    @property
    def affine(self) -> bool:
        """Whether the channels have factors."""
        return self.weight is not None

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        number = "" if self.num_channels is None else f", {self.num_channels}"
        return f"{self.num_groups}{number}, eps={self.eps}, affine={self.affine}, bias={self.bias is not None}"


@applies(GroupNorm)
def group_norm(
    p: GroupNorm, x: Float[Tensor, "batch num_channels *space"]
) -> Float[Tensor, "batch num_channels *space"]:
    """Normalise every group of channels of every example over its channels and positions.

    Args:
        p: the parameters.
        x: the input; the batch dimension is required.

    Raises:
        ShapeError: `x` has fewer than two dimensions, or channels that do not fit.

    Source:
        Wu, He: Group Normalization, 2018.
    """
    known = None if p.weight is None else p.weight.shape[0]
    if x.dim() < 2 or x.shape[1] % p.num_groups or known not in (None, x.shape[1]):
        channels = f"a multiple of {p.num_groups}" if known is None else known
        raise ShapeError(
            f"group_norm: expected an input of shape [batch, channels, *space] with channels {channels}, got shape "
            f"{list(x.shape)}. An input without a batch dimension needs x.unsqueeze(0)."
        )
    return ops.group_norm(x, p.num_groups, p.weight, p.bias, eps=p.eps)
