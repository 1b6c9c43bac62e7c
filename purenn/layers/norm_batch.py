"""Batch normalisation: the channels' statistics are those of a batch, and running averages of them are buffers.

It is stateful: the function returns the result and the container with the new buffers, and the argument stays as it
was. ``train=True`` normalises with the batch and updates the averages, ``train=False`` normalises with the averages.
One container class for each number of spatial dimensions says which inputs it takes; the function is the same.
"""

from typing import Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import ops
from purenn.errors import ShapeError
from purenn.layers._channel_norm import ChannelNorm, check_channels
from purenn.tree import applies, container, replace


@container
class _BatchNorm(ChannelNorm):
    @classmethod
    def init(
        cls,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        bias: bool = True,
        track_running_stats: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer that changes nothing but mean and variance; nothing is drawn.

        Args:
            num_features: number of channels.
            eps: added to the variance. Default: 1e-5.
            momentum: share of a batch in the new running averages, None for the plain average of all batches.
                Default: 0.1.
            affine: whether channels have a factor and a summand. Default: True.
            bias: whether an affine layer has the summand. Default: True.
            track_running_stats: whether to keep running averages; without them every batch, in training or not, is
                normalised with its own statistics. Default: True.
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
class BatchNorm1d(_BatchNorm):
    """Batch normalisation of ``[batch, channels]`` or ``[batch, channels, length]``; see `batch_norm`."""

    ranks = (2, 3)


@container
class BatchNorm2d(_BatchNorm):
    """Batch normalisation of ``[batch, channels, height, width]``; see `batch_norm`."""

    ranks = (4,)


@container
class BatchNorm3d(_BatchNorm):
    """Batch normalisation of ``[batch, channels, depth, height, width]``; see `batch_norm`."""

    ranks = (5,)


Batch = TypeVar("Batch", bound=_BatchNorm)


@applies(_BatchNorm, stateful=True)
def batch_norm(
    p: Batch, x: Float[Tensor, "batch num_features *space"], *, train: bool = False
) -> tuple[Float[Tensor, "batch num_features *space"], Batch]:
    """Normalise every channel over the batch and all positions.

    Under `vmap` the mapped dimension is not a part of the batch: each mapped input has statistics of its own, and so
    does each container that is returned. A batch without examples leaves the averages as they are.

    Args:
        p: the parameters and the running averages.
        x: the input, of the number of dimensions that the container is for.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The result, and the container with the new averages. No gradient flows through the averages.

    Raises:
        ShapeError: the wrong number of dimensions or channels, or a single value per channel where its own statistics
            are needed.

    Source:
        Ioffe, Szegedy: Batch Normalization, 2015.
    """
    # A module of torch.nn in the place of the container has no `ranks`.
    check_channels("batch_norm", p, x, 1, getattr(p, "ranks", None))
    if (train or p.running_mean is None) and x.numel() == x.shape[1]:
        raise ShapeError(
            f"batch_norm: expected more than one value per channel to take statistics from, got an input of shape "
            f"{list(x.shape)}. Use a larger batch, or train=False in a layer that tracks running statistics."
        )
    if not train or p.running_mean is None:
        y, _ = ops.batch_norm(x, p.running_mean, p.running_var, p.weight, p.bias, eps=p.eps)
        return y, p
    count = None if p.num_batches_tracked is None else p.num_batches_tracked + 1
    momentum = p.momentum
    if momentum is None:
        momentum = 0.0 if count is None else count.to(p.running_mean.dtype).reciprocal()
    y, (mean, var) = ops.batch_norm(
        x, p.running_mean, p.running_var, p.weight, p.bias, train=True, momentum=momentum, eps=p.eps
    )
    return y, replace(p, running_mean=mean, running_var=var, num_batches_tracked=count)
