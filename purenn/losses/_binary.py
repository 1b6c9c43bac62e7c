"""Losses of yes-or-no questions, one for each element: targets are 0 or 1, or probabilities of 1."""

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from purenn.errors import ShapeError
from purenn.losses._binds import binds
from purenn.losses._kernels import may_fuse
from purenn.losses._reduction import Reduction, check_reduction, check_same_shape, check_weight, reduced
from purenn.tree import Layer, buffer, container, static


def binary_cross_entropy(
    probabilities: Float[Tensor, "*shape"],
    target: Shaped[Tensor, "*shape"],
    *,
    weight: Float[Tensor, "*weights"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """``-(target log(p) + (1 - target) log(1 - p))``, with logarithms not below -100, as in torch.

    Args:
        probabilities: p, any shape, between 0 and 1. For the result of a sigmoid `binary_cross_entropy_with_logits` is
            more precise.
        target: 0, 1 or a probability for each; whole numbers and booleans will do.
        weight: factor of each element, or of what broadcasts to them.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("binary_cross_entropy", prediction=probabilities, target=target)
    check_reduction(reduction)
    target = as_probabilities(target, probabilities)
    if weight is not None:
        check_weight("binary_cross_entropy", "weight", weight, probabilities)
    if weight is None or may_fuse(probabilities, target, weight):
        return F.binary_cross_entropy(probabilities, target, weight, reduction=reduction)
    return reduced(F.binary_cross_entropy(probabilities, target, reduction="none") * weight, reduction)


def binary_cross_entropy_with_logits(
    logits: Float[Tensor, "*shape"],
    target: Shaped[Tensor, "*shape"],
    *,
    weight: Float[Tensor, "*weights"] | None = None,
    pos_weight: Float[Tensor, "*pos_weights"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """`binary_cross_entropy` of ``sigmoid(logits)``, without its loss of precision.

    Args:
        logits: any shape.
        target: 0, 1 or a probability for each; whole numbers and booleans will do.
        weight: factor of each element, or of what broadcasts to them.
        pos_weight: factor of the first term, that of 1: one for each class (the last dimension), or what else
            broadcasts to the elements. Above 1 it raises recall, below 1 precision.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction.
    """
    loss = "binary_cross_entropy_with_logits"
    check_same_shape(loss, prediction=logits, target=target)
    check_reduction(reduction)
    for name, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None:
            check_weight(loss, name, factor, logits)
    target = as_probabilities(target, logits)
    if (weight is None and pos_weight is None) or may_fuse(logits, target, weight, pos_weight):
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction=reduction, pos_weight=pos_weight)
    factor = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    each = (1 - target) * logits - factor * F.logsigmoid(logits)
    return reduced(each if weight is None else each * weight, reduction)


def multi_label_soft_margin_loss(
    logits: Float[Tensor, "*batch classes"],
    target: Shaped[Tensor, "*batch classes"],
    *,
    weight: Float[Tensor, " classes"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """`binary_cross_entropy_with_logits`, averaged over the classes (the last dimension).

    Args:
        logits: ``[batch, classes]`` or ``[classes]``.
        target: of the same shape, 1 for each class that applies and 0 for the others.
        weight: factor of each class.
        reduction: over the examples: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("multi_label_soft_margin_loss", prediction=logits, target=target)
    check_reduction(reduction)
    if logits.ndim == 0:
        raise ShapeError("multi_label_soft_margin_loss: the prediction must be [..., classes], got a single number.")
    if weight is not None:
        check_weight("multi_label_soft_margin_loss", "weight", weight, logits)
    return F.multilabel_soft_margin_loss(logits, as_probabilities(target, logits), weight, reduction=reduction)


def as_probabilities(target: Tensor, like: Tensor) -> Tensor:
    """Whole numbers and booleans in the dtype of the prediction; anything else as it is."""
    return target if target.is_floating_point() else target.to(like.dtype)


@binds(binary_cross_entropy)
@container
class BCELoss(Layer):
    """`binary_cross_entropy` with its options.

    Attributes:
        weight: factors that broadcast to the elements, or None.
        reduction: "mean", "sum" or "none".
    """

    weight: Float[Tensor, "*weights"] | None = buffer(default=None)
    reduction: Reduction = static(default="mean")


@binds(binary_cross_entropy_with_logits)
@container
class BCEWithLogitsLoss(Layer):
    """`binary_cross_entropy_with_logits` with its options.

    Attributes:
        weight: factors that broadcast to the elements, or None.
        pos_weight: factors of the elements whose target is 1, or None.
        reduction: "mean", "sum" or "none".
    """

    weight: Float[Tensor, "*weights"] | None = buffer(default=None)
    pos_weight: Float[Tensor, "*pos_weights"] | None = buffer(default=None)
    reduction: Reduction = static(default="mean")


@binds(multi_label_soft_margin_loss)
@container
class MultiLabelSoftMarginLoss(Layer):
    """`multi_label_soft_margin_loss` with its options.

    Attributes:
        weight: factor of each class, or None.
        reduction: "mean", "sum" or "none".
    """

    weight: Float[Tensor, " classes"] | None = buffer(default=None)
    reduction: Reduction = static(default="mean")
