"""Variants of `RMSNorm`: with a weight around 1, with a gate, and with the mean square of some elements only.

All divide by the root of a mean square over the last dimensions, in float32 at least, and multiply by a weight.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn import ops
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.norm import as_shape, check_last
from purenn.tree import Layer, applies, container, static


@container
class _Weighted(Layer):
    weight: Float[Tensor, "*normalized_shape"]
    eps: float = static(default=1e-6)

    _first: ClassVar[float] = 1.0

    @classmethod
    def init(
        cls,
        normalized_shape: int | Sequence[int],
        *,
        eps: float = 1e-6,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer that changes nothing but the mean square; nothing is drawn.

        Args:
            normalized_shape: sizes of the last dimensions, or the size of the last one.
            eps: added to the mean square. Default: 1e-6.
            dtype: of the parameter. Default: torch's default dtype.
            device: of the parameter. Default: torch's default device.
        """
        return cls(torch.full(as_shape(normalized_shape), cls._first, dtype=dtype, device=device), eps)

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        """Sizes of the last dimensions, over which to normalise."""
        return tuple(self.weight.shape)

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"{self.normalized_shape}, eps={self.eps}"


@container
class ZeroCenteredRMSNorm(_Weighted):
    """Normalisation by the root mean square, whose factors are ``1 + weight``; see `zero_centered_rms_norm`.

    Attributes:
        weight: what is added to the factor 1 of each element; it starts at 0, to which weight decay draws it back.
        eps: added to the mean square.
    """

    _first: ClassVar[float] = 0.0


@applies(ZeroCenteredRMSNorm)
def zero_centered_rms_norm(p: ZeroCenteredRMSNorm, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)``, over the last dimensions.

    Args:
        p: the parameter.
        x: the input, ``[*batch, *normalized_shape]``.

    Raises:
        ShapeError: the last dimensions of `x` are not `normalized_shape`.

    Source:
        Gemma Team: Gemma, 2024.
    """
    check_last("zero_centered_rms_norm", tuple(p.weight.shape), x)
    return _normalised(x, 1 + _wide(p.weight), p.eps)


@container
class GatedRMSNorm(_Weighted):
    """Normalisation by the root mean square of what passes a gate; see `gated_rms_norm`.

    Attributes:
        weight: factor of each element.
        eps: added to the mean square.
        gate_first: whether the product with the gate is normalised, or else the input before it. Default: True.
    """

    gate_first: bool = static(default=True)


@applies(GatedRMSNorm)
def gated_rms_norm(
    p: GatedRMSNorm, x: Float[Tensor, "*shape"], gate: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """``rms_norm(x * silu(gate))``, or with ``gate_first=False`` ``rms_norm(x) * silu(gate)``.

    Args:
        p: the parameter.
        x: the input, ``[*batch, *normalized_shape]``.
        gate: of the same shape.

    Raises:
        ShapeError: the shapes differ, or the last dimensions are not `normalized_shape`.

    Source:
        Dao, Gu: Transformers are SSMs, 2024.
    """
    check_last("gated_rms_norm", tuple(p.weight.shape), x)
    if gate.shape != x.shape:
        raise ShapeError(
            f"gated_rms_norm: x and gate must have the same shape, got {list(x.shape)} and {list(gate.shape)}."
        )
    passes = F.silu(_wide(gate))
    if p.gate_first:
        return _normalised(_wide(x) * passes, p.weight, p.eps).to(x.dtype)
    return (_normalised(_wide(x), p.weight, p.eps) * passes).to(x.dtype)


@container
class PartialRMSNorm(_Weighted):
    """Normalisation by the root mean square of the first elements; see `partial_rms_norm`.

    Attributes:
        weight: factor of each element, ``[features]``.
        eps: added to the mean square.
        share: how much of the last dimension the mean square is taken over. Default: 1 / 16.
    """

    share: float = static(default=0.0625)

    @share.validator  # pyright: ignore[reportAttributeAccessIssue]
    def _check_share(self, _: object, share: float) -> None:
        if not 0 < share <= 1:
            raise ArgumentError(f"PartialRMSNorm: share must be above 0 and at most 1, got {share!r}.")


@applies(PartialRMSNorm)
def partial_rms_norm(p: PartialRMSNorm, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
    """``x / sqrt(mean(x[..., :k]^2) + eps) * weight`` with ``k = ceil(share * features)``.

    Args:
        p: the parameter.
        x: the input.

    Raises:
        ShapeError: the last dimension of `x` is not that of the weight.

    Source:
        Zhang, Sennrich: Root Mean Square Layer Normalization, 2019, section 4.
    """
    check_last("partial_rms_norm", tuple(p.weight.shape), x)
    wide = _wide(x)
    known = wide.narrow(-1, 0, math.ceil(p.share * x.shape[-1]))
    return (wide * (known.square().mean(-1, keepdim=True) + p.eps).rsqrt() * p.weight).to(x.dtype)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return ops.rms_norm(_wide(x), tuple(weight.shape), _wide(weight), eps=eps).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
