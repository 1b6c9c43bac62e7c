"""Rectifiers with a slope on the negative side: a fixed one, a learned one, a drawn one.

Names, options and defaults are those of `torch.nn`, without ``inplace``. Inputs have any shape.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn._kernels import Kernel, differentiable_twice, may_use_kernels
from purenn._modes import is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.tree import Layer, applies, container, static


@container
class LeakyReLU(Layer):
    """`x` where positive, a small multiple of it elsewhere.

    Attributes:
        negative_slope: the factor for negative `x`.
    """

    negative_slope: float = static(default=0.01)


@applies(LeakyReLU)
def leaky_relu(p: LeakyReLU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``max(0, x) + negative_slope * min(0, x)``."""
    return F.leaky_relu(x, p.negative_slope)


@container
class PReLU(Layer):
    """Leaky rectifier whose negative slope is learned (He et al. 2015, Delving deep into rectifiers).

    Attributes:
        weight: the slopes, ``[1]`` or one for each channel ``[channels]``.
    """

    weight: Float[Tensor, " num_parameters"]

    @classmethod
    def init(
        cls,
        num_parameters: int = 1,
        *,
        init: float = 0.25,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "PReLU":
        """Slopes that all start at `init`; `num_parameters` is 1 or the number of channels."""
        return cls(torch.full((num_parameters,), init, dtype=dtype or torch.get_default_dtype(), device=device))

    @property
    def num_parameters(self) -> int:
        """How many slopes there are."""
        return self.weight.shape[-1]

    def extra_repr(self) -> str:
        """The options as text."""
        return f"num_parameters={self.num_parameters}"


@applies(PReLU)
def prelu(p: PReLU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``max(0, x) + weight * min(0, x)``; if there are several slopes, they belong to dimension 1 of `x`.

    Raises:
        ShapeError: there are several slopes, and another number of channels.
    """
    slopes = p.weight.size(0)
    # One slope fits every shape, also that of a single number.
    shape = () if slopes == 1 else _channel_shape(x, slopes)
    if is_plain(x):
        return F.prelu(x, p.weight)
    # torch's fused kernel warns when vmap batches the slopes but not the input.
    return torch.relu(x) + p.weight.view(shape) * x.clamp(max=0)


def _channel_shape(x: Tensor, slopes: int) -> tuple[int, ...]:
    if x.ndim < 2 or x.size(1) != slopes:
        raise ShapeError(
            f"prelu: x has shape {list(x.shape)}, but there are {slopes} slopes, one for each channel (dimension 1). "
            f"Give x that many channels, or use one slope for all: PReLU.init()."
        )
    return (slopes, *(1 for _ in x.shape[2:]))


@container
class RReLU(Layer):
    """Leaky rectifier whose negative slope is drawn for each element (Xu et al. 2015, arXiv:1505.00853).

    Attributes:
        lower: smallest slope.
        upper: largest slope.
    """

    lower: float = static(default=1 / 8)
    upper: float = static(default=1 / 3)


@applies(RReLU)
def rrelu(p: RReLU, x: Float[Tensor, "*shape"], *, key: Tensor | None = None) -> Float[Tensor, "*shape"]:
    """`x` where positive, ``slope * x`` elsewhere.

    Args:
        p: the container.
        x: any shape.
        key: draws each slope from U(lower, upper); None takes their mean ``(lower + upper) / 2``, as torch does outside
            training.

    Raises:
        ArgumentError: `lower` is above `upper`.
    """
    if p.lower > p.upper:
        raise ArgumentError(f"rrelu: lower must not be above upper, got lower={p.lower} and upper={p.upper}.")
    if key is None:
        return F.leaky_relu(x, (p.lower + p.upper) / 2)
    slope = random.uniform(key, x.shape, low=p.lower, high=p.upper, dtype=x.dtype)

    def formula(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, slope * x)

    return differentiable_twice(_with_slopes(slope), formula, x) if may_use_kernels(x) else formula(x)


def _with_slopes(slope: Tensor) -> Kernel:
    # Kernels that need no decision for each element are several times faster than `where` with a random condition.
    def forward(x: Tensor) -> tuple[Tensor]:
        # To this one every element is a channel with a slope of its own.
        return (F.prelu(x.reshape(1, -1), slope.flatten()).reshape(x.shape),)

    def backward(gradient: Tensor, x: Tensor) -> Tensor:
        where_positive = torch.ops.aten.threshold_backward(gradient, x, 0)
        return torch.addcmul(where_positive, slope, gradient - where_positive)

    return Kernel(forward, backward)
