"""Softmax and its relatives: activations along one dimension."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn.errors import ShapeError
from purenn.tree import Layer, applies, container, static


@container
class Softmax(Layer):
    """Exponentials, scaled so that they add up to 1 along a dimension.

    Attributes:
        dim: the dimension. It must be given: torch's guess from the number of dimensions is deprecated there.
    """

    dim: int = static()


@applies(Softmax)
def softmax(p: Softmax, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``exp(x) / sum(exp(x))`` along ``p.dim``."""
    return F.softmax(x, p.dim)


@container
class Softmin(Layer):
    """`Softmax` of the negated input.

    Attributes:
        dim: the dimension along which the result adds up to 1.
    """

    dim: int = static()


@applies(Softmin)
def softmin(p: Softmin, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``exp(-x) / sum(exp(-x))`` along ``p.dim``."""
    return F.softmin(x, p.dim)


@container
class LogSoftmax(Layer):
    """Logarithm of `Softmax`, without overflow.

    Attributes:
        dim: the dimension along which the exponentials of the result add up to 1.
    """

    dim: int = static()


@applies(LogSoftmax)
def log_softmax(p: LogSoftmax, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x - log(sum(exp(x)))`` along ``p.dim``."""
    return F.log_softmax(x, p.dim)


@container
class Softmax2d(Layer):
    """`Softmax` over the channels of images, at each pixel."""


@applies(Softmax2d)
def softmax2d(
    p: Softmax2d, x: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels height width"]:
    """Softmax over dimension -3.

    Raises:
        ShapeError: `x` is neither ``[batch, channels, height, width]`` nor ``[channels, height, width]``.
    """
    if x.ndim not in (3, 4):
        raise ShapeError(
            f"softmax2d: x must be [batch, channels, height, width] or [channels, height, width], got shape "
            f"{list(x.shape)}. For another dimension use Softmax(dim)."
        )
    return F.softmax(x, -3)
