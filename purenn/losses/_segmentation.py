"""Losses for rare classes: the overlap of regions, and a cross entropy that looks away from what is easy."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.losses._binary import as_probabilities
from purenn.losses._binds import binds
from purenn.losses._cross_entropy import class_axis, of_class
from purenn.losses._reduction import Reduction, check_reduction, check_same_shape, reduced
from purenn.tree import Layer, buffer, container, static


def dice_loss(
    logits: Float[Tensor, "*shape"],
    target: Shaped[Tensor, "*shape"],
    *,
    smooth: float = 1.0,
    per_sample: bool = False,
) -> Float[Tensor, ""]:
    """``1 - (2 sum(p target) + smooth) / (sum(p) + sum(target) + smooth)`` with ``p = sigmoid(logits)``.

    Args:
        logits: any shape.
        target: of the same shape, 1 inside the region and 0 outside.
        smooth: added to both sides of the fraction; it defines the loss where there is no region.
        per_sample: False counts one region in the whole batch. True counts one in each example (dimension 0), and gives
            the mean of their losses.

    Raises:
        ShapeError: the shapes differ, or there is no dimension but that of the examples.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 2016, without its squares.
    """
    check_same_shape("dice_loss", prediction=logits, target=target)
    if per_sample and logits.ndim < 2:
        raise ShapeError(
            f"dice_loss: per_sample=True needs a batch of examples, at least 2 dimensions, got shape "
            f"{list(logits.shape)}. For a single example leave it out."
        )
    axes = tuple(range(1 if per_sample else 0, logits.ndim))
    target = as_probabilities(target, logits)
    inside = logits.sigmoid()
    overlap, total = (inside * target).sum(axes), inside.sum(axes) + target.sum(axes)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def focal_loss(
    logits: Float[Tensor, "*shape"],
    target: Shaped[Tensor, "*targets"],
    *,
    alpha: float | Float[Tensor, "*classes"] | None = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Cross entropy times ``(1 - p)^gamma``, where p is the probability that the model gives to what is right.

    Of one yes-or-no question for each element, if the target has the shape of the logits, or of one class among several
    (dimension 1, as in `cross_entropy`), if it holds class indices. The factor is computed from its logarithm, so that
    the gradient is finite also for ``gamma < 1`` and p = 1.

    Args:
        logits: any shape, or ``[batch, classes, ...]`` or ``[classes]``.
        target: 0, 1 or a probability for each element, or class indices ``[batch, ...]`` or ``[]``.
        alpha: for yes-or-no questions the factor of 1, while that of 0 is ``1 - alpha``; for classes the factor of all
            of them, or a tensor ``[classes]`` of one for each. None for no factor.
        gamma: how far easy elements are left out, not negative; 0 gives the cross entropy.
        reduction: over all elements or examples: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction, or a negative `gamma`.

    Source:
        Lin et al.: Focal Loss for Dense Object Detection, 2017, equation 5.
    """
    check_reduction(reduction)
    if gamma < 0:
        raise ArgumentError(f"focal_loss: gamma must not be negative, got {gamma}.")
    if target.shape == logits.shape:
        return reduced(_focal_binary(logits, as_probabilities(target, logits), alpha, gamma), reduction)
    axis = class_axis(logits)
    indices = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if target.shape != indices or target.is_floating_point():
        raise ShapeError(
            f"focal_loss: for logits of shape {list(logits.shape)} the target must have the same shape (a yes or no "
            f"for each) or be class indices, whole numbers of shape {list(indices)}; got {target.dtype} of shape "
            f"{list(target.shape)}."
        )
    return reduced(_focal_classes(logits, target.long(), alpha, gamma, axis), reduction)


def _focal_binary(logits: Tensor, target: Tensor, alpha: Any, gamma: float) -> Tensor:
    if isinstance(alpha, Tensor) and alpha.ndim > 0:
        raise ShapeError(
            f"focal_loss: the target has the shape of the logits, so alpha must be a number, the factor of 1; got "
            f"shape {list(alpha.shape)}. One factor for each class goes with class indices as the target."
        )
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    yes = -target * _faded(log_yes, log_no, gamma)
    no = -(1 - target) * _faded(log_no, log_yes, gamma)
    return yes + no if alpha is None else alpha * yes + (1 - alpha) * no


def _focal_classes(logits: Tensor, target: Tensor, alpha: Any, gamma: float, axis: int) -> Tensor:
    classes = logits.shape[axis]
    if isinstance(alpha, Tensor) and alpha.ndim > 0 and alpha.shape != (classes,):
        raise ShapeError(
            f"focal_loss: alpha must be a number or hold one for each of the {classes} classes, shape [{classes}], got "
            f"{list(alpha.shape)}."
        )
    log_p = logits.log_softmax(axis)
    index = target.unsqueeze(axis)
    positions = (1 for _ in logits.shape[axis + 1 :])
    own = torch.arange(classes, device=logits.device).reshape(-1, *positions) == index
    log_others = torch.where(own, torch.finfo(logits.dtype).min, log_p).logsumexp(axis)
    loss = -_faded(log_p.gather(axis, index).squeeze(axis), log_others, gamma)
    if alpha is None:
        return loss
    return loss * (of_class(alpha, target) if isinstance(alpha, Tensor) and alpha.ndim > 0 else alpha)


def _faded(log_right: Tensor, log_wrong: Tensor, gamma: float) -> Tensor:
    return (gamma * log_wrong).exp() * log_right


def _as_tensor(alpha: Any) -> Any:
    # float64 without dimensions: exact, and no reason for torch to promote the loss.
    return torch.tensor(alpha, dtype=torch.float64) if isinstance(alpha, (int, float)) else alpha


@binds(dice_loss)
@container
class DiceLoss(Layer):
    """`dice_loss` with its options.

    Attributes:
        smooth: added to both sides of the fraction.
        per_sample: whether each example is a region of its own.
    """

    smooth: float = static(default=1.0)
    per_sample: bool = static(default=False)


@binds(focal_loss)
@container
class FocalLoss(Layer):
    """`focal_loss` with its options.

    Attributes:
        alpha: the factor of 1, or of each class, or None; a number becomes a tensor.
        gamma: how far easy elements are left out.
        reduction: "mean", "sum" or "none".
    """

    alpha: Float[Tensor, "*classes"] | None = buffer(default=0.25, converter=_as_tensor)
    gamma: float = static(default=2.0)
    reduction: Reduction = static(default="mean")
