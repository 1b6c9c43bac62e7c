"""Cross entropy: the negative logarithm of the probability that a model gives to the right class.

The class axis is dimension 1, or the only one of a single example; any further dimensions are positions (pixels, times)
with a class each. A target holds class indices (whole numbers) or class probabilities (floating point), and which of
the two is told by its dtype.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.losses._binds import binds
from purenn.losses._kernels import may_fuse
from purenn.losses._reduction import Reduction, check_reduction, reduced
from purenn.tree import Layer, buffer, container, static


def cross_entropy(
    logits: Float[Tensor, "*shape"],
    target: Integer[Tensor, "*indices"] | Float[Tensor, "*shape"],
    *,
    weight: Float[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """``-log(softmax(logits)[target])``, or for class probabilities its expectation.

    Args:
        logits: ``[batch, classes, ...]`` or ``[classes]``.
        target: class indices ``[batch, ...]`` or ``[]``, or class probabilities of the shape of `logits`.
        weight: factor of each class. "mean" divides by the sum of the weights of the targets; with class probabilities
            by the number of examples all the same.
        ignore_index: examples with this class cost nothing and do not count in the mean. The mean over none is NaN.
        label_smoothing: the share, between 0 and 1, of a uniform distribution that is mixed into the target.
        reduction: over examples and positions: "mean", "sum" or "none".

    Raises:
        ShapeError: shapes or dtypes do not fit.
        ArgumentError: an unknown reduction, or `label_smoothing` outside its range.

    Source:
        Label smoothing: Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, 2016, section 7.
    """
    check_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"cross_entropy: label_smoothing must lie between 0 and 1, got {label_smoothing}.")
    _check_classes("cross_entropy", logits, target, weight, probabilities=True)
    weight = None if weight is None else weight.to(logits.dtype)
    if target.is_floating_point() or may_fuse(logits, target, weight):
        target = target if target.is_floating_point() else target.long()
        return F.cross_entropy(
            logits,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    log_probabilities = logits.log_softmax(class_axis(logits))
    return _of_indices(log_probabilities, target.long(), weight, ignore_index, label_smoothing, reduction)


def nll_loss(
    log_probabilities: Float[Tensor, "*shape"],
    target: Integer[Tensor, "*indices"],
    *,
    weight: Float[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """``-log_probabilities[target]``, which makes `cross_entropy` of the result of a log softmax.

    Args:
        log_probabilities: ``[batch, classes, ...]`` or ``[classes]``.
        target: class indices ``[batch, ...]`` or ``[]``.
        weight: factor of each class. "mean" divides by the sum of the weights of the targets.
        ignore_index: examples with this class cost nothing and do not count in the mean. The mean over none is NaN.
        reduction: over examples and positions: "mean", "sum" or "none".

    Raises:
        ShapeError: shapes or dtypes do not fit.
        ArgumentError: an unknown reduction.
    """
    check_reduction(reduction)
    _check_classes("nll_loss", log_probabilities, target, weight, probabilities=False)
    weight = None if weight is None else weight.to(log_probabilities.dtype)
    if may_fuse(log_probabilities, target, weight):
        return F.nll_loss(log_probabilities, target.long(), weight, ignore_index=ignore_index, reduction=reduction)
    return _of_indices(log_probabilities, target.long(), weight, ignore_index, 0.0, reduction)


def class_axis(scores: Tensor) -> int:
    """Number of the dimension that counts the classes."""
    return min(1, scores.ndim - 1)


def counted_weight(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Sum of the weights of the classes that are not ignored: what the mean divides by."""
    counted = target != ignore_index
    if weight is None:
        return counted.sum()
    return torch.where(counted, of_class(weight, torch.where(counted, target, 0)), 0).sum()


def of_class(weight: Tensor, index: Tensor) -> Tensor:
    """The weight of each class in a tensor of indices, which may be a single number (not an index under vmap)."""
    return weight[index.unsqueeze(-1)].squeeze(-1)


def _of_indices(
    log_probabilities: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    axis = class_axis(log_probabilities)
    counted = target != ignore_index
    index = torch.where(counted, target, 0)
    loss = -log_probabilities.gather(axis, index.unsqueeze(axis)).squeeze(axis)
    if weight is not None:
        loss = loss * of_class(weight, index)
    if label_smoothing > 0:
        each = log_probabilities
        if weight is not None:
            each = each * weight.reshape(-1, *(1 for _ in log_probabilities.shape[axis + 1 :]))
        loss = (1 - label_smoothing) * loss - label_smoothing * each.mean(axis)
    loss = torch.where(counted, loss, 0)
    if reduction == "mean":
        return loss.sum() / counted_weight(target, weight, ignore_index)
    return reduced(loss, reduction)


def _check_classes(loss: str, scores: Tensor, target: Tensor, weight: Tensor | None, *, probabilities: bool) -> None:
    if scores.ndim == 0:
        raise ShapeError(f"{loss}: the prediction must be [batch, classes, ...] or [classes], got a single number.")
    axis = class_axis(scores)
    classes = scores.shape[axis]
    if weight is not None and weight.shape != (classes,):
        raise ShapeError(
            f"{loss}: weight must hold one number for each of the {classes} classes, shape [{classes}], got "
            f"{list(weight.shape)}. The classes are dimension {axis} of the prediction, {list(scores.shape)}."
        )
    indices = (*scores.shape[:axis], *scores.shape[axis + 1 :])
    floating = target.is_floating_point()
    if target.shape == (scores.shape if floating else indices) and (probabilities or not floating):
        return
    expected = f"class indices, whole numbers of shape {list(indices)}"
    if probabilities:
        expected += f", or class probabilities, floating point of shape {list(scores.shape)}"
    if target.shape == indices:
        fix = "Use target.long()."
    elif target.shape == scores.shape:
        fix = "Use target.to(prediction.dtype)." if probabilities else f"Use target.argmax({axis})."
    else:
        fix = f"The classes are dimension {axis} of the prediction."
    raise ShapeError(
        f"{loss}: for a prediction of shape {list(scores.shape)} the target must be {expected}; got {target.dtype} of "
        f"shape {list(target.shape)}. {fix}"
    )


@binds(cross_entropy)
@container
class CrossEntropyLoss(Layer):
    """`cross_entropy` with its options.

    Attributes:
        weight: factor of each class, or None.
        ignore_index: class that is left out.
        reduction: "mean", "sum" or "none".
        label_smoothing: share of the uniform distribution in the target.
    """

    weight: Float[Tensor, " classes"] | None = buffer(default=None)
    ignore_index: int = static(default=-100)
    reduction: Reduction = static(default="mean")
    label_smoothing: float = static(default=0.0)


@binds(nll_loss)
@container
class NLLLoss(Layer):
    """`nll_loss` with its options.

    Attributes:
        weight: factor of each class, or None.
        ignore_index: class that is left out.
        reduction: "mean", "sum" or "none".
    """

    weight: Float[Tensor, " classes"] | None = buffer(default=None)
    ignore_index: int = static(default=-100)
    reduction: Reduction = static(default="mean")
