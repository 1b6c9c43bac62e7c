"""Rectifiers and their relatives: element-wise activations made of pieces.

Every container holds the options of one function, under the names and defaults of `torch.nn`, without ``inplace``, for
which a pure function has no use. Inputs have any shape. Only `PReLU` has a parameter, and only `RReLU` draws. Where
torch's fused kernel lacks a second derivative or a batching rule, the function is written in plain operations.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn._modes import is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.tree import Layer, applies, container, static


@container
class ReLU(Layer):
    """Rectified linear unit, ``max(0, x)``; its derivative at 0 is 0."""


@applies(ReLU)
def relu(p: ReLU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``max(0, x)``."""
    return torch.relu(x)


@container
class ReLU6(Layer):
    """Rectified linear unit with a ceiling, ``min(max(0, x), 6)``."""


@applies(ReLU6)
def relu6(p: ReLU6, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``min(max(0, x), 6)``."""
    return F.relu6(x)


@container
class Hardtanh(Layer):
    """Clamp to an interval whose ends have derivative 0.

    Attributes:
        min_val: lower end.
        max_val: upper end.
    """

    min_val: float = static(default=-1.0)
    max_val: float = static(default=1.0)


@applies(Hardtanh)
def hardtanh(p: Hardtanh, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``min(max(min_val, x), max_val)``."""
    return F.hardtanh(x, p.min_val, p.max_val)


@container
class Hardsigmoid(Layer):
    """Sigmoid of three straight lines, ``min(max(0, x + 3), 6) / 6``."""


@applies(Hardsigmoid)
def hardsigmoid(p: Hardsigmoid, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``min(max(0, x + 3), 6) / 6``."""
    # torch's fused kernel has no second derivative.
    return F.relu6(x + 3) / 6


@container
class Hardswish(Layer):
    """``x * hardsigmoid(x)`` (Howard et al. 2019, Searching for MobileNetV3)."""


@applies(Hardswish)
def hardswish(p: Hardswish, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x * min(max(0, x + 3), 6) / 6``."""
    return F.hardswish(x)


@container
class Hardshrink(Layer):
    """Zero where ``|x| <= lambd``, `x` elsewhere.

    Attributes:
        lambd: half the width of the interval that becomes zero.
    """

    lambd: float = static(default=0.5)


@applies(Hardshrink)
def hardshrink(p: Hardshrink, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` where ``|x| > lambd``, else 0."""
    return F.hardshrink(x, p.lambd)


@container
class Softshrink(Layer):
    """Move `x` towards zero by `lambd`, and to zero where it is nearer than that.

    Attributes:
        lambd: the distance, not negative.
    """

    lambd: float = static(default=0.5)


@applies(Softshrink)
def softshrink(p: Softshrink, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``sign(x) * max(|x| - lambd, 0)``."""
    return F.softshrink(x, p.lambd)


@container
class Threshold(Layer):
    """`x` above a threshold, a constant elsewhere.

    Attributes:
        threshold: the threshold; at it the constant is taken.
        value: the constant.
    """

    threshold: float = static()
    value: float = static()


@applies(Threshold)
def threshold(p: Threshold, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` where ``x > threshold``, else `value`."""
    return F.threshold(x, p.threshold, p.value)


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
    return torch.where(x > 0, x, slope * x)


@container
class ELU(Layer):
    """Exponential linear unit (Clevert et al. 2016, arXiv:1511.07289).

    Attributes:
        alpha: minus the limit at minus infinity.
    """

    alpha: float = static(default=1.0)


@applies(ELU)
def elu(p: ELU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` where positive, ``alpha * (exp(x) - 1)`` elsewhere."""
    return F.elu(x, p.alpha)


@container
class SELU(Layer):
    """Scaled `ELU` that keeps mean 0 and variance 1 (Klambauer et al. 2017, arXiv:1706.02515)."""


@applies(SELU)
def selu(p: SELU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``scale * elu(x)`` with the paper's alpha 1.6732632423543772 and scale 1.0507009873554805."""
    return F.selu(x)


@container
class CELU(Layer):
    """`ELU` with a continuous derivative for every alpha (Barron 2017, arXiv:1704.07483).

    Attributes:
        alpha: minus the limit at minus infinity, not 0.
    """

    alpha: float = static(default=1.0)


@applies(CELU)
def celu(p: CELU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``max(0, x) + min(0, alpha * (exp(x / alpha) - 1))``."""
    return F.celu(x, p.alpha)
