"""Smooth element-wise activations: the sigmoid, the hyperbolic tangent, and what is made of them.

Names, options and defaults are those of `torch.nn`. Inputs have any shape, but for `GLU`, which halves a dimension.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn._modes import is_plain
from purenn.errors import ShapeError
from purenn.tree import Layer, applies, container, static


@container
class Sigmoid(Layer):
    """Logistic function, ``1 / (1 + exp(-x))``."""


@applies(Sigmoid)
def sigmoid(p: Sigmoid, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``1 / (1 + exp(-x))``."""
    return torch.sigmoid(x)


@container
class LogSigmoid(Layer):
    """Logarithm of the logistic function, without overflow."""


@applies(LogSigmoid)
def log_sigmoid(p: LogSigmoid, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``-log(1 + exp(-x))``."""
    return F.logsigmoid(x)


@container
class Tanh(Layer):
    """Hyperbolic tangent."""


@applies(Tanh)
def tanh(p: Tanh, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``(exp(x) - exp(-x)) / (exp(x) + exp(-x))``."""
    return torch.tanh(x)


@container
class Tanhshrink(Layer):
    """``x - tanh(x)``."""


@applies(Tanhshrink)
def tanhshrink(p: Tanhshrink, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x - tanh(x)``."""
    return x - torch.tanh(x)


@container
class Softsign(Layer):
    """``x / (1 + |x|)``."""


@applies(Softsign)
def softsign(p: Softsign, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x / (1 + |x|)``."""
    return F.softsign(x)


@container
class Softplus(Layer):
    """Smooth rectifier ``log(1 + exp(beta * x)) / beta``.

    Attributes:
        beta: sharpness of the bend, not 0.
        threshold: where ``beta * x`` is above it, the result is `x`, to which it is equal in floating point.
    """

    beta: float = static(default=1.0)
    threshold: float = static(default=20.0)


@applies(Softplus)
def softplus(p: Softplus, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``log(1 + exp(beta * x)) / beta``."""
    return F.softplus(x, p.beta, p.threshold)


@container
class SiLU(Layer):
    """Sigmoid linear unit, also called swish, ``x * sigmoid(x)`` (Ramachandran et al. 2017, arXiv:1710.05941).

    At minus infinity it is NaN as in torch, ``-inf * 0``, although its limit there is 0; so mask with a large negative
    number, not with ``-inf``, before it.
    """


@applies(SiLU)
def silu(p: SiLU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x * sigmoid(x)``."""
    return F.silu(x)


@container
class Mish(Layer):
    """``x * tanh(softplus(x))`` (Misra 2019, arXiv:1908.08681)."""


@applies(Mish)
def mish(p: Mish, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x * tanh(log(1 + exp(x)))``."""
    return F.mish(x)


@container
class GELU(Layer):
    """Gaussian error linear unit, `x` times the normal distribution function (Hendrycks 2016, arXiv:1606.08415).

    Attributes:
        approximate: ``"none"`` for the exact function, ``"tanh"`` for
            ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``.
    """

    approximate: Literal["none", "tanh"] = static(default="none")


@applies(GELU)
def gelu(p: GELU, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x * Phi(x)``, Phi the distribution function of N(0, 1)."""
    return F.gelu(x, approximate=p.approximate)


@container
class GLU(Layer):
    """Gated linear unit: one half of the input, gated by the sigmoid of the other (Dauphin et al. 2017).

    Attributes:
        dim: the dimension that is halved.
    """

    dim: int = static(default=-1)


@applies(GLU)
def glu(p: GLU, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``a * sigmoid(b)``, where `a` and `b` are the two halves of `x` along ``p.dim``.

    Raises:
        ShapeError: the dimension's size is odd.
    """
    size = x.size(p.dim)
    if size % 2:
        raise ShapeError(
            f"glu: dimension {p.dim} is split into halves, so its size must be even, got {size} (x of shape "
            f"{list(x.shape)})."
        )
    if is_plain(x):
        return F.glu(x, p.dim)
    # The forward-mode derivative of torch's fused kernel has no batching rule.
    value, gate = x.chunk(2, p.dim)
    return value * torch.sigmoid(gate)
