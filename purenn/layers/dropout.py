"""Dropout: random zeros as regularisation, from explicit keys.

Every layer here takes ``key``. Without one it is the identity, so there is no mode to switch: give a key when training,
none when testing. The same key gives the same zeros; `vmap` over keys gives every example zeros of its own.

`Dropout` zeroes elements, `Dropout1d` to `Dropout3d` whole channels, and the two alpha forms set elements or channels
to SELU's limit for minus infinity, so that mean and variance of what a SELU makes are kept.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, DeviceError, ShapeError
from purenn.tree import Layer, applies, container, static

# SELU's scale times its alpha: selu(-infinity) is minus this number.
_ALPHA = 1.7580993408473766


@container
class _Rate(Layer):
    p: float = static(default=0.5)

    @p.validator  # pyright: ignore[reportAttributeAccessIssue]
    def _check_rate(self, _: Any, p: float) -> None:
        if not 0 <= p <= 1:
            raise ArgumentError(
                f"{type(self).__name__}: p is the probability of a zero and must be from 0 to 1, got {p!r}."
            )

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"p={self.p}"


@container
class Dropout(_Rate):
    """Zeros in the place of random elements; see `dropout`.

    Attributes:
        p: probability of a zero. Default: 0.5.
    """


@applies(Dropout)
def dropout(p: Dropout, x: Float[Tensor, "*shape"], *, key: Tensor | None = None) -> Float[Tensor, "*shape"]:
    """Set every element to 0 with probability ``p.p`` and divide the others by ``1 - p.p``, which keeps the mean.

    Args:
        p: the rate.
        x: the input.
        key: random key; without one `x` is returned as it is.

    Raises:
        DeviceError: key and input are on different devices.

    Source:
        Srivastava et al.: Dropout, 2014.
    """
    return _zeros("dropout", p.p, x, key, x.shape)


@container
class Dropout1d(_Rate):
    """Zeros in the place of random channels of sequences; see `dropout1d`.

    Attributes:
        p: probability that a channel is zero. Default: 0.5.
    """


@applies(Dropout1d)
def dropout1d(
    p: Dropout1d, x: Float[Tensor, "*batch channels length"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch channels length"]:
    """Set every channel to 0 with probability ``p.p`` and divide the others by ``1 - p.p``.

    Args:
        p: the rate.
        x: the input, ``[batch, channels, length]`` or one example of it.
        key: random key; without one `x` is returned as it is.

    Raises:
        ShapeError: `x` has another number of dimensions.
        DeviceError: key and input are on different devices.

    Source:
        Tompson et al.: Efficient Object Localization Using Convolutional Networks, 2015.
    """
    return _zero_channels("dropout1d", p, x, key, 1)


@container
class Dropout2d(_Rate):
    """Zeros in the place of random channels of images; see `dropout2d`.

    Attributes:
        p: probability that a channel is zero. Default: 0.5.
    """


@applies(Dropout2d)
def dropout2d(
    p: Dropout2d, x: Float[Tensor, "*batch channels height width"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch channels height width"]:
    """As `dropout1d`, for ``[batch, channels, height, width]`` or one example of it.

    An input of three dimensions is one example, so that `vmap` means what the batched call means. (In torch 2.x
    ``F.dropout2d`` still reads it as ``[batch, channels, length]`` and warns that this will change; use `Dropout1d`.)
    """
    return _zero_channels("dropout2d", p, x, key, 2)


@container
class Dropout3d(_Rate):
    """Zeros in the place of random channels of volumes; see `dropout3d`.

    Attributes:
        p: probability that a channel is zero. Default: 0.5.
    """


@applies(Dropout3d)
def dropout3d(
    p: Dropout3d, x: Float[Tensor, "*batch channels depth height width"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch channels depth height width"]:
    """As `dropout1d`, for ``[batch, channels, depth, height, width]`` or one example of it."""
    return _zero_channels("dropout3d", p, x, key, 3)


@container
class AlphaDropout(_Rate):
    """Dropout for self-normalising networks; see `alpha_dropout`.

    Attributes:
        p: probability that an element is dropped. Default: 0.5.
    """


@applies(AlphaDropout)
def alpha_dropout(p: AlphaDropout, x: Float[Tensor, "*shape"], *, key: Tensor | None = None) -> Float[Tensor, "*shape"]:
    """Set elements to ``-1.758...`` with probability ``p.p``, then scale and shift all of them.

    ``y = a (x or -alpha) + b`` with ``a = 1 / sqrt((1 - p)(1 + p alpha^2))`` and ``b = a p alpha`` keeps mean 0 and
    variance 1. With ``p.p = 1`` the result is 0.

    Args:
        p: the rate.
        x: the input, made by SELU.
        key: random key; without one `x` is returned as it is.

    Raises:
        DeviceError: key and input are on different devices.

    Source:
        Klambauer et al.: Self-Normalizing Neural Networks, 2017.
    """
    return _alphas("alpha_dropout", p.p, x, key, x.shape)


@container
class FeatureAlphaDropout(_Rate):
    """Dropout of whole channels for self-normalising networks; see `feature_alpha_dropout`.

    Attributes:
        p: probability that a channel is dropped. Default: 0.5.
    """


@applies(FeatureAlphaDropout)
def feature_alpha_dropout(
    p: FeatureAlphaDropout, x: Float[Tensor, "batch channels *space"], *, key: Tensor | None = None
) -> Float[Tensor, "batch channels *space"]:
    """As `alpha_dropout`, but all positions of a channel are dropped together.

    Args:
        p: the rate.
        x: the input; as in torch, dimensions 0 and 1 are always the batch and the channels.
        key: random key; without one `x` is returned as it is.

    Raises:
        ShapeError: `x` has fewer than two dimensions.
        DeviceError: key and input are on different devices.
    """
    if x.dim() < 2:
        raise ShapeError(
            f"feature_alpha_dropout: expected an input of shape [batch, channels, *space], got {list(x.shape)}. For "
            f"single elements use AlphaDropout."
        )
    return _alphas("feature_alpha_dropout", p.p, x, key, (*x.shape[:2], *[1] * (x.dim() - 2)))


def _zero_channels(name: str, p: _Rate, x: Tensor, key: Tensor | None, dimensions: int) -> Tensor:
    if x.dim() not in (dimensions + 1, dimensions + 2):
        raise ShapeError(
            f"{name}: expected an input of {dimensions + 2} dimensions, [batch, channels, *space], or {dimensions + 1} "
            f"for one example, got shape {list(x.shape)}. Use the form for another number of dimensions, or Dropout "
            f"for single elements."
        )
    return _zeros(name, p.p, x, key, (*x.shape[:-dimensions], *[1] * dimensions))


def _zeros(name: str, rate: float, x: Tensor, key: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if key is None or rate == 0:
        return x
    keep = _keep(name, rate, x, key, shape)
    if 0 < rate < 1 and keep.shape != x.shape:
        # A number for each channel: one product is several times faster than a choice for each element.
        return x * (keep.to(x.dtype) / (1 - rate))
    # By `where`, so that a dropped infinity is 0 and not NaN.
    return torch.where(keep, x * (0.0 if rate == 1 else 1 / (1 - rate)), 0.0)


def _alphas(name: str, rate: float, x: Tensor, key: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if rate == 1:
        return _zeros(name, rate, x, key, shape)
    if key is None or rate == 0:
        return x
    scale = ((1 - rate) * (1 + rate * _ALPHA**2)) ** -0.5
    shift = scale * rate * _ALPHA
    keep = _keep(name, rate, x, key, shape)
    if keep.shape != x.shape:
        kept = keep.to(x.dtype) * scale
        return (x * kept).add_((kept - scale) * _ALPHA + shift)
    return torch.where(keep, x, -_ALPHA) * scale + shift


def _keep(name: str, rate: float, x: Tensor, key: Tensor, shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    if isinstance(key, Tensor) and key.device != x.device:  # other mistakes are for the draw to tell
        raise DeviceError(f"{name}: the key is on {key.device} and x on {x.device}; write key.to(x.device).")
    return random.bernoulli(key, shape, p=1 - rate)
