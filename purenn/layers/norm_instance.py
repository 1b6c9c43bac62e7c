"""Instance normalisation: the channels' statistics are those of one example.

It may keep running averages, so it is stateful like batch normalisation: the function returns the result and the
container with the new buffers. One container class for each number of spatial dimensions says which inputs it takes and
which of them are single examples; the function is the same.
"""

import math
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from purenn import ops
from purenn.errors import ShapeError
from purenn.layers._channel_norm import ChannelNorm, check_channels
from purenn.tree import applies, container, replace


@container
class _InstanceNorm(ChannelNorm):
    @classmethod
    def init(
        cls,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        bias: bool = True,
        track_running_stats: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer that changes nothing but mean and variance; nothing is drawn.

        Args:
            num_features: number of channels.
            eps: added to the variance. Default: 1e-5.
            momentum: share of a batch in the new running averages; None, as in torch, leaves them unchanged.
                Default: 0.1.
            affine: whether channels have a factor and a summand. Default: False.
            bias: whether an affine layer has the summand. Default: True.
            track_running_stats: whether to keep running averages over examples and batches, and to normalise with them
                when not in training. Default: False.
            dtype: of parameters and averages. Default: torch's default dtype.
            device: of all tensors. Default: torch's default device.
        """
        return cls.fresh(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            bias=bias,
            track_running_stats=track_running_stats,
            dtype=dtype,
            device=device,
        )


@container
class InstanceNorm1d(_InstanceNorm):
    """Instance normalisation of ``[batch, channels, length]`` or one example of it; see `instance_norm`."""

    ranks = (2, 3)


@container
class InstanceNorm2d(_InstanceNorm):
    """Instance normalisation of ``[batch, channels, height, width]`` or one example of it; see `instance_norm`."""

    ranks = (3, 4)


@container
class InstanceNorm3d(_InstanceNorm):
    """Instance normalisation of ``[batch, channels, depth, height, width]`` or one example; see `instance_norm`."""

    ranks = (4, 5)


Instance = TypeVar("Instance", bound=_InstanceNorm)


@applies(_InstanceNorm, stateful=True)
def instance_norm(
    p: Instance, x: Float[Tensor, "..."], *, train: bool = False
) -> tuple[Float[Tensor, "..."], Instance]:
    """Normalise every channel of every example over its positions.

    Without running averages, the default, `train` changes nothing and the container comes back as it is; it comes back
    all the same, so that what is returned does not depend on options.

    Args:
        p: the parameters and the running averages.
        x: the input, with or without a batch dimension.
        train: whether to update the running averages, and not to normalise with them.

    Returns:
        The result, and the container with the new averages. No gradient flows through the averages.

    Raises:
        ShapeError: the wrong number of dimensions or channels, or a single position where statistics over positions
            are needed.

    Source:
        Ulyanov, Vedaldi, Lempitsky: Instance Normalization, 2016.
    """
    ranks = _ranks(p)
    single = ranks is not None and x.dim() == ranks[0]
    check_channels("instance_norm", p, x, 0 if single else 1, ranks)
    tracked = p.running_mean is not None
    if (train or not tracked) and math.prod(x.shape[1 if single else 2 :]) == 1:
        raise ShapeError(
            f"instance_norm: expected more than one position to take statistics from, got an input of shape "
            f"{list(x.shape)}. Use a larger input, or train=False in a layer that tracks running statistics."
        )
    y, (mean, var) = ops.instance_norm(
        x.unsqueeze(0) if single else x,
        p.running_mean,
        p.running_var,
        p.weight,
        p.bias,
        train=train,
        momentum=p.momentum or 0.0,
        eps=p.eps,
    )
    return y.squeeze(0) if single else y, replace(p, running_mean=mean, running_var=var) if train and tracked else p


# For torch.nn's own modules in the place of the container, which must know as well what a single example is.
_TORCH_RANKS = {
    nn.InstanceNorm1d: InstanceNorm1d.ranks,
    nn.InstanceNorm2d: InstanceNorm2d.ranks,
    nn.InstanceNorm3d: InstanceNorm3d.ranks,
}


def _ranks(p: Any) -> tuple[int, ...] | None:
    found = getattr(p, "ranks", None)
    return next((ranks for cls, ranks in _TORCH_RANKS.items() if isinstance(p, cls)), None) if found is None else found
