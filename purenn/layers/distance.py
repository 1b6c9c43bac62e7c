"""Similarity and distance of vectors."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn._modes import is_plain
from purenn.errors import ShapeError
from purenn.tree import Layer, applies, container, static


@container
class CosineSimilarity(Layer):
    """The cosine of the angle between vectors.

    Attributes:
        dim: dimension along which the vectors lie.
        eps: norms that are smaller count as this number.
    """

    dim: int = static(default=1)
    eps: float = static(default=1e-8)


@applies(CosineSimilarity)
def cosine_similarity(p: CosineSimilarity, x1: Float[Tensor, "..."], x2: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x1 . x2 / (max(|x1|, eps) * max(|x2|, eps))`` along ``p.dim``, in which the inputs have the same size.

    Dimensions other than ``p.dim`` are broadcast. Under transformations derivatives of all orders are those of the
    formula and finite, also at vectors of zeros; without them torch's kernel runs, whose second derivatives are NaN
    there and whose first derivatives between 0 and eps are those of a norm that is not cut off.

    Raises:
        ShapeError: the shapes do not fit.
    """
    _check_pair("cosine_similarity", x1, x2, p.dim)
    if is_plain(x1, x2):
        return F.cosine_similarity(x1, x2, p.dim, p.eps)
    # A dimension that one input lacks is at the same place from the end in both after broadcasting.
    dim = p.dim if p.dim < 0 else p.dim - max(x1.ndim, x2.ndim)
    return (_unit(x1, dim, p.eps) * _unit(x2, dim, p.eps)).sum(dim)


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    # The norm is taken of vectors of ones where it does not matter, so that no derivative of it is infinite.
    small = torch.linalg.vector_norm(x.detach(), dim=dim, keepdim=True) <= eps
    norm = torch.linalg.vector_norm(torch.where(small, 1, x), dim=dim, keepdim=True)
    return x / torch.where(small, eps, norm)


@container
class PairwiseDistance(Layer):
    """The distance of vectors in a p-norm.

    Attributes:
        norm: the p of the norm, ``sum(|x| ** p) ** (1 / p)``; it may be infinite or negative.
        eps: added to each difference, so that the distance of equal vectors has derivatives.
        keepdim: whether the last dimension stays, with size 1.
    """

    norm: float = static(default=2.0)
    eps: float = static(default=1e-6)
    keepdim: bool = static(default=False)


@applies(PairwiseDistance)
def pairwise_distance(
    p: PairwiseDistance, x1: Float[Tensor, "*#batch features"], x2: Float[Tensor, "*#batch features"]
) -> Float[Tensor, "..."]:
    """``|x1 - x2 + eps|`` along the last dimension, of the same size in both inputs; the others are broadcast.

    Raises:
        ShapeError: the shapes do not fit.
    """
    _check_pair("pairwise_distance", x1, x2, -1)
    return F.pairwise_distance(x1, x2, p.norm, p.eps, p.keepdim)


def _check_pair(name: str, x1: Tensor, x2: Tensor, dim: int) -> None:
    if x1.shape == x2.shape and -x1.ndim <= dim < x1.ndim:
        return
    try:
        shape = torch.broadcast_shapes(x1.shape, x2.shape)
        ndim = len(shape)
        # The dimension counts from the end, where the shorter of the two shapes begins.
        position = dim if dim < 0 else dim - ndim
        fits = -ndim <= position < 0 and all(
            x.ndim >= -position and x.size(position) == shape[position] for x in (x1, x2)
        )
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{name}: x1 and x2 must have the same size in dimension {dim}, and sizes that can be broadcast in the "
            f"others, got shapes {list(x1.shape)} and {list(x2.shape)}."
        )
