"""Normalisation over the last dimensions: each example by its own statistics, no batch, no state.

`LayerNorm` makes mean 0 and variance 1, `RMSNorm` mean square 1. `UnbiasedLayerNorm` is the textbook's form of the
first, which divides by the sample's standard deviation.
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import ops
from purenn.errors import ArgumentError, ShapeError
from purenn.tree import Layer, applies, container, static


@container
class LayerNorm(Layer):
    """Layer normalisation; see `layer_norm`.

    Attributes:
        weight: factor of each element, of shape `normalized_shape`, or None.
        bias: summand of each element, of shape `normalized_shape`, or None.
        normalized_shape: sizes of the last dimensions, over which to normalise.
        eps: added to the variance.
    """

    weight: Float[Tensor, "*normalized_shape"] | None
    bias: Float[Tensor, "*normalized_shape"] | None
    normalized_shape: tuple[int, ...] = static()
    eps: float = static(default=1e-5)

    @classmethod
    def init(
        cls,
        normalized_shape: int | Sequence[int],
        *,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer that changes nothing but mean and variance; nothing is drawn.

        Args:
            normalized_shape: sizes of the last dimensions, or the size of the last one.
            eps: added to the variance. Default: 1e-5.
            elementwise_affine: whether elements have a factor and a summand. Default: True.
            bias: whether an affine layer has the summand. Default: True.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: torch's default device.
        """
        shape = as_shape(normalized_shape)
        weight = torch.ones(shape, dtype=dtype, device=device) if elementwise_affine else None
        summand = torch.zeros(shape, dtype=dtype, device=device) if elementwise_affine and bias else None
        return cls(weight, summand, shape, eps)

    @property
    def elementwise_affine(self) -> bool:
        """Whether elements have factors."""
        return self.weight is not None

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


@applies(LayerNorm)
def layer_norm(p: LayerNorm, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` with the biased variance, over the last dimensions.

    Args:
        p: the parameters.
        x: the input, ``[*batch, *normalized_shape]``.

    Raises:
        ShapeError: the last dimensions of `x` are not `normalized_shape`.

    Source:
        Ba, Kiros, Hinton: Layer Normalization, 2016.
    """
    check_last("layer_norm", p.normalized_shape, x)
    return ops.layer_norm(x, p.normalized_shape, p.weight, p.bias, eps=p.eps)


@container
class UnbiasedLayerNorm(Layer):
    """Layer normalisation by the sample's standard deviation; see `unbiased_layer_norm`.

    Attributes:
        gamma: factor of each element, of shape `normalized_shape`.
        beta: summand of each element, of shape `normalized_shape`.
        eps: added to the standard deviation.
    """

    gamma: Float[Tensor, "*normalized_shape"]
    beta: Float[Tensor, "*normalized_shape"]
    eps: float = static(default=1e-6)

    @classmethod
    def init(
        cls,
        normalized_shape: int | Sequence[int],
        *,
        eps: float = 1e-6,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer that changes nothing but mean and standard deviation; nothing is drawn.

        Args:
            normalized_shape: sizes of the last dimensions, or the size of the last one.
            eps: added to the standard deviation. Default: 1e-6.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: torch's default device.

        Raises:
            ArgumentError: there is only one value to normalise over.
        """
        shape = as_shape(normalized_shape)
        if torch.Size(shape).numel() < 2:
            raise ArgumentError(
                f"UnbiasedLayerNorm.init: normalized_shape must have at least 2 elements, got {shape}: a single value "
                f"has no sample standard deviation. Use LayerNorm."
            )
        return cls(torch.ones(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device), eps)

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        """Sizes of the last dimensions, over which to normalise."""
        return tuple(self.gamma.shape)

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"{self.normalized_shape}, eps={self.eps}"


@applies(UnbiasedLayerNorm)
def unbiased_layer_norm(p: UnbiasedLayerNorm, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``gamma * (x - mean) / (std + eps) + beta`` over the last dimensions, with the **unbiased** deviation.

    It differs from `layer_norm` in two ways: the sum of squares is divided by n - 1 instead of n, and eps is added to
    the standard deviation instead of the variance. Over n elements the results have a ratio of about
    ``sqrt((n - 1) / n)``.

    Args:
        p: the parameters.
        x: the input, ``[*batch, *normalized_shape]``.

    Raises:
        ShapeError: the last dimensions of `x` are not `normalized_shape`.
    """
    check_last("unbiased_layer_norm", p.normalized_shape, x)
    last = tuple(range(-p.gamma.dim(), 0))
    centred = x - x.mean(last, keepdim=True)
    return p.gamma * centred / (x.std(last, keepdim=True) + p.eps) + p.beta


@container
class RMSNorm(Layer):
    """Normalisation by the root mean square; see `rms_norm`.

    Attributes:
        weight: factor of each element, of shape `normalized_shape`, or None.
        normalized_shape: sizes of the last dimensions, over which to normalise.
        eps: added to the mean square; None for the distance from 1 to the next number of the computation's dtype.
    """

    weight: Float[Tensor, "*normalized_shape"] | None
    normalized_shape: tuple[int, ...] = static()
    eps: float | None = static(default=None)

    @classmethod
    def init(
        cls,
        normalized_shape: int | Sequence[int],
        *,
        eps: float | None = None,
        elementwise_affine: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer that changes nothing but the mean square; nothing is drawn.

        Args:
            normalized_shape: sizes of the last dimensions, or the size of the last one.
            eps: added to the mean square. Default: None, the distance from 1 to the next number.
            elementwise_affine: whether elements have a factor. Default: True.
            dtype: of the parameter. Default: torch's default dtype.
            device: of the parameter. Default: torch's default device.
        """
        shape = as_shape(normalized_shape)
        return cls(torch.ones(shape, dtype=dtype, device=device) if elementwise_affine else None, shape, eps)

    @property
    def elementwise_affine(self) -> bool:
        """Whether elements have factors."""
        return self.weight is not None

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


@applies(RMSNorm)
def rms_norm(p: RMSNorm, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x / sqrt(mean(x^2) + eps) * weight``, over the last dimensions.

    Args:
        p: the parameter.
        x: the input, ``[*batch, *normalized_shape]``.

    Raises:
        ShapeError: the last dimensions of `x` are not `normalized_shape`.

    Source:
        Zhang, Sennrich: Root Mean Square Layer Normalization, 2019.
    """
    check_last("rms_norm", p.normalized_shape, x)
    return ops.rms_norm(x, p.normalized_shape, p.weight, eps=p.eps)


def as_shape(sizes: int | Sequence[int]) -> tuple[int, ...]:
    """Sizes of the last dimensions, of which one may be given as a number."""
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)


def check_last(name: str, normalized_shape: tuple[int, ...], x: Tensor) -> None:
    """Require that these are the sizes of the last dimensions.

    Raises:
        ShapeError: they are not.
    """
    if x.shape[-len(normalized_shape) :] != normalized_shape:
        raise ShapeError(
            f"{name}: expected an input whose last dimensions are {list(normalized_shape)}, got shape {list(x.shape)}. "
            f"Move those dimensions last, or init the layer with other sizes."
        )
