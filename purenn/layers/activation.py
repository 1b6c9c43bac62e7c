"""Rectifiers and their relatives: element-wise activations made of pieces.

Every container holds the options of one function, under the names and defaults of `torch.nn`, without ``inplace``, for
which a pure function has no use. Inputs have any shape. Where torch's fused kernel lacks a second derivative, the
function is written in plain operations as well.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn._kernels import Kernel, differentiable_twice, may_use_kernels
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
    # The kernel's derivative has a sixth in single precision.
    if x.dtype == torch.float32 and may_use_kernels(x):
        return differentiable_twice(_HARDSIGMOID, _hardsigmoid, x)
    return _hardsigmoid(x)


def _hardsigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6


_HARDSIGMOID = Kernel(lambda x: (F.hardsigmoid(x),), torch.ops.aten.hardsigmoid_backward.default)


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
