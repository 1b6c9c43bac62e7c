"""Losses of order and distance: which of two should come first, and which should lie near each other."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.losses._binds import binds
from purenn.losses._reduction import Reduction, check_reduction, check_same_shape, listed, reduced
from purenn.tree import Layer, container, static

Distance = Callable[[Tensor, Tensor], Tensor]


def margin_ranking_loss(
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    target: Num[Tensor, "*shape"],
    *,
    margin: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """``max(0, margin - target (first - second))``: where the target is 1, the first should be larger by `margin`.

    Args:
        first: any shape.
        second: the same shape.
        target: the same shape; 1, or -1 where the second should be larger.
        margin: by how much.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("margin_ranking_loss", first=first, second=second, target=target)
    return reduced((margin - target * (first - second)).clamp(min=0), reduction)


def cosine_embedding_loss(
    first: Float[Tensor, "*batch features"],
    second: Float[Tensor, "*batch features"],
    target: Num[Tensor, "*batch"],
    *,
    margin: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """``1 - cos(first, second)`` where the target is 1, ``max(0, cos(first, second) - margin)`` where it is -1.

    Args:
        first: ``[batch, features]`` or ``[features]``.
        second: the same shape.
        target: ``[batch]`` or ``[]``, 1 or -1.
        margin: the cosine up to which others are different enough, between -1 and 1.
        reduction: over the batch: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("cosine_embedding_loss", first=first, second=second)
    check_reduction(reduction)
    if first.ndim not in (1, 2) or target.shape != first.shape[:-1]:
        raise ShapeError(
            f"cosine_embedding_loss: expected inputs [batch, features] with a target [batch], or [features] with a "
            f"target [], got {list(first.shape)} and {list(target.shape)}."
        )
    return F.cosine_embedding_loss(first, second, target, margin, reduction=reduction)


def triplet_margin_loss(
    anchor: Float[Tensor, "*batch features"],
    positive: Float[Tensor, "*batch features"],
    negative: Float[Tensor, "*batch features"],
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """``max(0, |anchor - positive| - |anchor - negative| + margin)``: the positive should be nearer to the anchor.

    Args:
        anchor: ``[..., features]``.
        positive: the same shape.
        negative: the same shape.
        margin: by how much nearer, positive.
        p: the p of the p-norm.
        eps: added to the differences, so that the norm has a derivative at 0.
        swap: whether the distance from positive to negative counts instead where it is smaller.
        reduction: over the examples: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction, or a `margin` that is not positive.

    Source:
        Balntas et al.: Learning local feature descriptors with triplets and shallow convolutional neural networks,
        2016.
    """
    check_same_shape("triplet_margin_loss", anchor=anchor, positive=positive, negative=negative)
    _check_margin("triplet_margin_loss", margin)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return F.pairwise_distance(a, b, p, eps)

    return reduced(_triplet(anchor, positive, negative, distance, margin, swap), reduction)


def triplet_margin_with_distance_loss(
    anchor: Float[Tensor, "*shape"],
    positive: Float[Tensor, "*shape"],
    negative: Float[Tensor, "*shape"],
    *,
    distance_function: Distance | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """`triplet_margin_loss` with another distance.

    Args:
        anchor: ``[batch, ...]``.
        positive: of as many dimensions.
        negative: of as many dimensions.
        distance_function: ``f(a, b)``, a distance for each example, not negative; None for the Euclidean one.
        margin: by how much nearer the positive should be, positive.
        swap: whether the distance from positive to negative counts instead where it is smaller.
        reduction: over the examples: "mean", "sum" or "none".

    Raises:
        ShapeError: the numbers of dimensions differ.
        ArgumentError: an unknown reduction, or a `margin` that is not positive.
    """
    if not anchor.ndim == positive.ndim == negative.ndim:
        shapes = [str(list(tensor.shape)) for tensor in (anchor, positive, negative)]
        raise ShapeError(
            f"triplet_margin_with_distance_loss: anchor, positive and negative must have as many dimensions, got "
            f"shapes {listed(shapes)}."
        )
    _check_margin("triplet_margin_with_distance_loss", margin)
    distance = distance_function or F.pairwise_distance
    return reduced(_triplet(anchor, positive, negative, distance, margin, swap), reduction)


def _triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, distance: Distance, margin: float, swap: bool
) -> Tensor:
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = torch.minimum(far, distance(positive, negative))
    return (margin + near - far).clamp(min=0)


def _check_margin(loss: str, margin: float) -> None:
    if margin <= 0:
        raise ArgumentError(f"{loss}: margin must be positive, got {margin}.")


@binds(margin_ranking_loss)
@container
class MarginRankingLoss(Layer):
    """`margin_ranking_loss` with its options; it is applied to the two inputs and the target.

    Attributes:
        margin: by how much the one should exceed the other.
        reduction: "mean", "sum" or "none".
    """

    margin: float = static(default=0.0)
    reduction: Reduction = static(default="mean")


@binds(cosine_embedding_loss)
@container
class CosineEmbeddingLoss(Layer):
    """`cosine_embedding_loss` with its options; it is applied to the two inputs and the target.

    Attributes:
        margin: the cosine up to which others are different enough.
        reduction: "mean", "sum" or "none".
    """

    margin: float = static(default=0.0)
    reduction: Reduction = static(default="mean")


@binds(triplet_margin_loss)
@container
class TripletMarginLoss(Layer):
    """`triplet_margin_loss` with its options; it is applied to anchor, positive and negative.

    Attributes:
        margin: by how much nearer the positive should be.
        p: the p of the p-norm.
        eps: added to the differences.
        swap: whether the distance from positive to negative may count.
        reduction: "mean", "sum" or "none".
    """

    margin: float = static(default=1.0)
    p: float = static(default=2.0)
    eps: float = static(default=1e-6)
    swap: bool = static(default=False)
    reduction: Reduction = static(default="mean")


@binds(triplet_margin_with_distance_loss)
@container
class TripletMarginWithDistanceLoss(Layer):
    """`triplet_margin_with_distance_loss` with its options; it is applied to anchor, positive and negative.

    Attributes:
        distance_function: the distance, None for the Euclidean one.
        margin: by how much nearer the positive should be.
        swap: whether the distance from positive to negative may count.
        reduction: "mean", "sum" or "none".
    """

    distance_function: Distance | None = static(default=None)
    margin: float = static(default=1.0)
    swap: bool = static(default=False)
    reduction: Reduction = static(default="mean")
