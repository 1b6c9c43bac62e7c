"""Losses of numbers: how far a prediction is from its target, element by element.

Prediction and target must have the same shape. torch broadcasts them with a warning, which turns a column ``[n, 1]``
against a row ``[n]`` into n^2 comparisons; here that is an error.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.losses._binds import binds
from purenn.losses._kernels import may_fuse
from purenn.losses._reduction import Reduction, check_reduction, check_same_shape, reduced
from purenn.tree import Layer, container, static


def l1_loss(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    weight: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Absolute error, ``|prediction - target|``; its derivative at 0 is 0.

    Args:
        prediction: any shape.
        target: the same shape.
        weight: factor of each element, of the same shape. "mean" then divides by the sum of the weights.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("l1_loss", prediction=prediction, target=target)
    if weight is not None:
        return _weighted_mean("l1_loss", (prediction - target).abs(), weight, reduction)
    check_reduction(reduction)
    return F.l1_loss(prediction, target, reduction=reduction)


def mse_loss(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    weight: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Squared error, ``(prediction - target)^2``.

    Args:
        prediction: any shape.
        target: the same shape.
        weight: factor of each element, of the same shape. "mean" then divides by the sum of the weights.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("mse_loss", prediction=prediction, target=target)
    if weight is not None:
        return _weighted_mean("mse_loss", (prediction - target).square(), weight, reduction)
    if may_fuse(prediction, target):
        check_reduction(reduction)
        return F.mse_loss(prediction, target, reduction=reduction)
    # Batching rules of torch's fused kernels of this family warn when only one of the two is batched.
    return reduced((prediction - target).square(), reduction)


def smooth_l1_loss(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    beta: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Squared error near 0 and absolute error elsewhere: `huber_loss` divided by `beta`, the width of the first part.

    ``d^2 / (2 beta)`` where ``|d| < beta``, else ``|d| - beta / 2``, with ``d = prediction - target``.

    Args:
        prediction: any shape.
        target: the same shape.
        beta: where the two parts meet, not negative; 0 makes it `l1_loss`.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction, or a negative `beta`.

    Source:
        Girshick: Fast R-CNN, 2015, equation 3.
    """
    check_same_shape("smooth_l1_loss", prediction=prediction, target=target)
    check_reduction(reduction)
    if beta < 0:
        raise ArgumentError(f"smooth_l1_loss: beta must not be negative, got {beta}.")
    if beta == 0 or may_fuse(prediction, target):
        return F.smooth_l1_loss(prediction, target, reduction=reduction, beta=beta)
    return reduced(_huber(prediction - target, beta) / beta, reduction)


def huber_loss(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    delta: float = 1.0,
    weight: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Squared error near 0, continued by straight lines.

    ``d^2 / 2`` where ``|d| < delta``, else ``delta (|d| - delta / 2)``, with ``d = prediction - target``.

    Args:
        prediction: any shape.
        target: the same shape.
        delta: where the parts meet, positive.
        weight: factor of each element, of the same shape. "mean" divides by the number of elements all the same.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction, or a `delta` that is not positive.

    Source:
        Huber: Robust Estimation of a Location Parameter, 1964.
    """
    check_same_shape("huber_loss", prediction=prediction, target=target)
    check_reduction(reduction)
    if delta <= 0:
        raise ArgumentError(f"huber_loss: delta must be positive, got {delta}.")
    if weight is not None:
        check_same_shape("huber_loss", prediction=prediction, weight=weight)
        return reduced(_huber(prediction - target, delta) * weight, reduction)
    if may_fuse(prediction, target):
        return F.huber_loss(prediction, target, reduction=reduction, delta=delta)
    return reduced(_huber(prediction - target, delta), reduction)


def _huber(difference: Tensor, delta: float) -> Tensor:
    # Written with a clamp, so that the second derivative at 0 is right and the gradient at infinity is finite.
    near = difference.clamp(-delta, delta)
    return near * (difference - near / 2)


def _weighted_mean(loss: str, each: Tensor, weight: Tensor, reduction: str) -> Tensor:
    check_same_shape(loss, prediction=each, weight=weight)
    if reduction == "mean":
        return (each * weight).sum() / weight.sum()
    return reduced(each * weight, reduction)


@binds(l1_loss)
@container
class L1Loss(Layer):
    """`l1_loss` with its options.

    Attributes:
        reduction: "mean", "sum" or "none".
    """

    reduction: Reduction = static(default="mean")


@binds(mse_loss)
@container
class MSELoss(Layer):
    """`mse_loss` with its options.

    Attributes:
        reduction: "mean", "sum" or "none".
    """

    reduction: Reduction = static(default="mean")


@binds(smooth_l1_loss)
@container
class SmoothL1Loss(Layer):
    """`smooth_l1_loss` with its options.

    Attributes:
        reduction: "mean", "sum" or "none".
        beta: where the quadratic part ends.
    """

    reduction: Reduction = static(default="mean")
    beta: float = static(default=1.0)


@binds(huber_loss)
@container
class HuberLoss(Layer):
    """`huber_loss` with its options.

    Attributes:
        reduction: "mean", "sum" or "none".
        delta: where the quadratic part ends.
    """

    reduction: Reduction = static(default="mean")
    delta: float = static(default=1.0)
