"""Normalisation of features by running statistics alone: buffers, no parameters."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import ops
from purenn.errors import ShapeError
from purenn.tree import Layer, applies, buffer, container, replace, static


@container
class RunningNorm(Layer):
    """Batch normalisation without parameters, whose running variance is the biased one; see `running_norm`.

    Attributes:
        running_mean: average of the batches' means, ``[num_features]``.
        running_var: average of the batches' biased variances, ``[num_features]``.
        momentum: share of a batch in the new averages.
        eps: added to the variance.
    """

    running_mean: Float[Tensor, " num_features"] = buffer()
    running_var: Float[Tensor, " num_features"] = buffer()
    momentum: float = static(default=0.1)
    eps: float = static(default=1e-5)

    @classmethod
    def init(
        cls,
        num_features: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Averages of 0 and 1; nothing is drawn.

        Args:
            num_features: number of features.
            momentum: share of a batch in the new averages. Default: 0.1.
            eps: added to the variance. Default: 1e-5.
            dtype: of the averages. Default: torch's default dtype.
            device: of the averages. Default: torch's default device.
        """
        mean = torch.zeros(num_features, dtype=dtype, device=device)
        return cls(mean, torch.ones(num_features, dtype=dtype, device=device), momentum, eps)

    @property
    def num_features(self) -> int:
        """Number of features."""
        return self.running_mean.shape[-1]

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"{self.num_features}, momentum={self.momentum}, eps={self.eps}"


@applies(RunningNorm, stateful=True)
def running_norm(
    p: RunningNorm, x: Float[Tensor, "batch num_features *space"], *, train: bool = False
) -> tuple[Float[Tensor, "batch num_features *space"], RunningNorm]:
    """``(x - mean) / sqrt(variance + eps)``, every feature over the batch and, if there are any, over all positions.

    In training mean and variance are the batch's own and gradients flow through them; otherwise they are the running
    averages. The averages take the biased variance, and no gradient. A batch of one example is its own mean: the result
    is 0 and the averages move towards a variance of 0. A batch without examples leaves the averages as they are.

    Args:
        p: the running averages.
        x: the input, with the features in dimension 1 (``[batch, features]`` as well as ``[batch, channels, height,
            width]``).
        train: whether to normalise with the batch's own statistics and to update the averages.

    Returns:
        The result, and the container with the new averages.

    Raises:
        ShapeError: dimension 1 does not hold the features.
    """
    if x.dim() < 2 or x.shape[1] != p.running_mean.shape[0]:
        raise ShapeError(
            f"running_norm: expected an input of shape [batch, {p.running_mean.shape[0]}, *space], got shape "
            f"{list(x.shape)}. Move the features to dimension 1, or init the layer with another num_features."
        )
    if not train or x.numel() == 0:
        y, _ = ops.batch_norm(x, p.running_mean, p.running_var, eps=p.eps)
        return y, p
    y, mean, var = ops.standardise(x, eps=p.eps)
    old, new = 1 - p.momentum, p.momentum
    return y, replace(
        p,
        running_mean=(old * p.running_mean + new * mean).to(p.running_mean.dtype),
        running_var=(old * p.running_var + new * var).to(p.running_var.dtype),
    )
