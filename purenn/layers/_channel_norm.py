"""What batch and instance normalisation share: their fields, the first values of these, and the checks of an input."""

from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn.errors import ShapeError
from purenn.tree import Layer, buffer, container, static


@container
class ChannelNorm(Layer):
    """What batch and instance normalisation have in common.

    Attributes:
        weight: factor of each channel, ``[num_features]``, or None.
        bias: summand of each channel, ``[num_features]``, or None.
        running_mean: average of the means, ``[num_features]``, or None if no averages are kept.
        running_var: average of the unbiased variances, ``[num_features]``, or None.
        num_batches_tracked: how many batches are in the averages, or None.
        eps: added to the variance.
        momentum: share of a batch in the new averages; None for the plain average of all batches.
    """

    ranks: ClassVar[tuple[int, ...]]

    weight: Float[Tensor, " num_features"] | None
    bias: Float[Tensor, " num_features"] | None
    running_mean: Float[Tensor, " num_features"] | None = buffer()
    running_var: Float[Tensor, " num_features"] | None = buffer()
    num_batches_tracked: Int[Tensor, ""] | None = buffer()
    eps: float = static(default=1e-5)
    momentum: float | None = static(default=0.1)

    @property
    def num_features(self) -> int | None:
        """Number of channels, None where no parameter or buffer says it."""
        known = self.weight if self.weight is not None else self.running_mean
        return None if known is None else known.shape[-1]

    @property
    def affine(self) -> bool:
        """Whether the channels have factors."""
        return self.weight is not None

    @property
    def track_running_stats(self) -> bool:
        """Whether running averages are kept."""
        return self.running_mean is not None

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        number = "" if self.num_features is None else f"{self.num_features}, "
        return (
            f"{number}eps={self.eps}, momentum={self.momentum}, affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )

    @classmethod
    def fresh(
        cls,
        num_features: int,
        *,
        eps: float,
        momentum: float | None,
        affine: bool,
        bias: bool,
        track_running_stats: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> Self:
        """Factors 1, summands 0, averages 0 and 1; arguments as in the `init` of the subclasses."""
        placed: dict[str, Any] = {"dtype": dtype, "device": device}
        return cls(
            weight=torch.ones(num_features, **placed) if affine else None,
            bias=torch.zeros(num_features, **placed) if affine and bias else None,
            running_mean=torch.zeros(num_features, **placed) if track_running_stats else None,
            running_var=torch.ones(num_features, **placed) if track_running_stats else None,
            num_batches_tracked=torch.zeros((), dtype=torch.int64, device=device) if track_running_stats else None,
            eps=eps,
            momentum=momentum,
        )


def check_channels(name: str, p: Any, x: Tensor, dim: int, ranks: tuple[int, ...] | None) -> None:
    """Require that `x` has one of the numbers of dimensions `ranks`, and the channels of `p` in dimension `dim`.

    Raises:
        ShapeError: it has not.
    """
    if x.dim() < 2 or (ranks is not None and x.dim() not in ranks):
        wanted = " or ".join(map(str, ranks or ("at least 2",)))
        raise ShapeError(
            f"{name}: expected an input of {wanted} dimensions, got shape {list(x.shape)}. Add or merge dimensions, or "
            f"use the layer that is made for inputs of this kind."
        )
    known = p.weight if p.weight is not None else p.running_mean
    if known is not None and x.shape[dim] != known.shape[0]:
        raise ShapeError(
            f"{name}: expected {known.shape[0]} channels in dimension {dim}, got an input of shape {list(x.shape)}. "
            f"Move the channels there, or init the layer with num_features={x.shape[dim]}."
        )
