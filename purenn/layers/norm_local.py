"""Normalisation across neighbouring channels, at each position by itself.

Strong responses suppress those of the channels beside them. `LocalResponseNorm` is the published form; `CrossMapLRN2d`
is torch's older one, with a window of its own.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn.errors import ShapeError
from purenn.tree import Layer, applies, container, static

# Pooling takes fewer calls than adding up the channels one by one, but more time for each number. It adds in single
# precision where numbers are half as wide.
_FEW = 2**10


@container
class _LocalNorm(Layer):
    size: int = static()
    alpha: float = static(default=1e-4)
    beta: float = static(default=0.75)
    k: float = static(default=1.0)

    def extra_repr(self) -> str:
        """The options, as torch writes them."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


@container
class LocalResponseNorm(_LocalNorm):
    """Normalisation by the mean square of neighbouring channels.

    Attributes:
        size: number of channels that are neighbours, the channel itself included.
        alpha: factor of the mean square.
        beta: exponent.
        k: summand.
    """


@applies(LocalResponseNorm)
def local_response_norm(
    p: LocalResponseNorm, x: Float[Tensor, "batch channels *space"]
) -> Float[Tensor, "batch channels *space"]:
    """``x / (k + alpha * mean of the neighbours' squares) ** beta``, channels beyond the ends counting as zeros.

    Args:
        p: the options.
        x: the input; channels are in dimension 1, and there is at least one dimension after it.

    Raises:
        ShapeError: `x` has less than three dimensions.

    Source:
        Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012.
    """
    if x.ndim < 3:
        raise ShapeError(
            f"local_response_norm: x must be [batch, channels, *space] with at least one dimension of space, got shape "
            f"{list(x.shape)}. Add what is missing: x.unsqueeze(0) a batch, x.unsqueeze(-1) space."
        )
    if x.numel() == 0:
        return x
    means = _window_means(x * x, p.size // 2, (p.size - 1) // 2)
    return x * _power(means.mul(p.alpha).add(p.k), p.beta)


@container
class CrossMapLRN2d(_LocalNorm):
    """Normalisation of images by the squares of neighbouring channels, as in torch's layer of this name.

    Attributes:
        size: what the sum of the squares is divided by; the window has ``size`` channels if this is odd, else one less.
        alpha: factor of the mean square.
        beta: exponent.
        k: summand.
    """


@applies(CrossMapLRN2d)
def cross_map_lrn2d(
    p: CrossMapLRN2d, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """``x * (k + alpha / size * sum of the window's squares) ** -beta``, the values of torch's layer.

    In those the first channel stays in the window of all channels after it. Derivatives are those of these values;
    torch's own are of other windows, and wrong. `local_response_norm` has none of these peculiarities.

    Raises:
        ShapeError: `x` has not four dimensions.
    """
    if x.ndim != 4:
        raise ShapeError(
            f"cross_map_lrn2d: x must be [batch, channels, height, width], got shape {list(x.shape)}. An image without "
            f"a batch dimension needs x.unsqueeze(0)."
        )
    if x.numel() == 0:
        return x
    squares = x * x
    reach = (p.size - 1) // 2
    width = 2 * reach + 1
    means = _window_means(squares, reach, reach)
    within, beyond = means[:, : reach + 1], means[:, reach + 1 :]
    if beyond.size(1):
        means = torch.cat((within, beyond + squares[:, :1] / width), 1)
    return x * _power(means.mul(p.alpha * width / p.size).add(p.k), p.beta)


def _power(base: Tensor, beta: float) -> Tensor:
    """``base ** -beta``; for the usual exponent by roots, which are much faster than powers."""
    if beta != 0.75:
        return base.pow(-beta)
    root = base.rsqrt()
    return root * root.sqrt()


def _window_means(squares: Tensor, before: int, after: int) -> Tensor:
    size, channels = before + after + 1, squares.size(1)
    flat = squares if squares.ndim == 3 else squares.flatten(2)
    rows = F.pad(flat, (0, 0, before, after))
    if squares.numel() < _FEW or squares.dtype.itemsize < 4:
        # One call, of images whose rows are the channels and whose columns are all positions.
        means = F.avg_pool2d(rows.unsqueeze(1), (size, 1), stride=1).squeeze(1)
    else:
        sums = rows.narrow(1, 0, channels)
        for start in range(1, size):
            sums = sums + rows.narrow(1, start, channels)
        means = sums / size
    return means if squares.ndim == 3 else means.reshape(squares.shape)
