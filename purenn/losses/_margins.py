"""Margin losses: the score of what is right should exceed that of what is wrong by a margin.

torch's kernels of the two losses over classes have neither batching rules nor second derivatives, hence the formulas.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from purenn._kernels import Kernel, differentiable_twice
from purenn.errors import ArgumentError, ShapeError
from purenn.losses._binds import binds
from purenn.losses._kernels import may_fuse
from purenn.losses._reduction import Reduction, check_reduction, check_same_shape, reduced
from purenn.tree import Layer, buffer, container, static

_aten = torch.ops.aten
# Torch's own numbers for the reductions.
_ENUM = {"none": 0, "mean": 1, "sum": 2}


def multi_margin_loss(
    scores: Float[Tensor, "*batch classes"],
    target: Int[Tensor, "*batch"],
    *,
    p: int = 1,
    margin: float = 1.0,
    weight: Float[Tensor, " classes"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Mean over the classes of ``max(0, margin - scores[target] + scores[k])^p``, the target's class left out.

    Args:
        scores: ``[batch, classes]`` or ``[classes]``.
        target: the class of each example, ``[batch]`` or ``[]``.
        p: 1 or 2.
        margin: by how much the right class should lead.
        weight: factor of the examples of each class.
        reduction: over the examples: "mean" (0 for an empty batch), "sum" or "none".

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction, or another `p`.

    Source:
        Weston, Watkins: Support Vector Machines for Multi-Class Pattern Recognition, 1999.
    """
    check_reduction(reduction)
    if p not in (1, 2):
        raise ArgumentError(f"multi_margin_loss: p must be 1 or 2, got {p}.")
    _check_scores("multi_margin_loss", scores)
    classes = scores.shape[-1]
    if target.shape != scores.shape[:-1]:
        raise ShapeError(
            f"multi_margin_loss: target must hold one class for each example, shape {list(scores.shape[:-1])} for a "
            f"prediction of shape {list(scores.shape)}, got {list(target.shape)}."
        )
    if weight is not None and weight.shape != (classes,):
        raise ShapeError(
            f"multi_margin_loss: weight must hold one number for each of the {classes} classes, shape [{classes}], got "
            f"{list(weight.shape)}."
        )
    index = target.long().unsqueeze(-1)
    weight = None if weight is None else weight.to(scores.dtype)

    def formula(scores: Tensor) -> Tensor:
        excess = (margin - scores.gather(-1, index) + scores).relu()
        each = excess if p == 1 else excess.square()
        if weight is not None:
            each = each * weight[index]
        own = index == torch.arange(classes, device=scores.device)
        return _reduced(torch.where(own, 0, each).mean(-1), reduction)

    if not (_has_kernel(scores) and may_fuse(scores, target, weight)):
        return formula(scores)
    options = (index.squeeze(-1), p, margin, weight, _ENUM[reduction])
    kernel = Kernel(
        lambda scores: (_aten.multi_margin_loss.default(scores, *options),),
        lambda gradient, scores: _aten.multi_margin_loss_backward.default(gradient, scores, *options),
    )
    return differentiable_twice(kernel, formula, scores)


def multi_label_margin_loss(
    scores: Float[Tensor, "*batch classes"],
    target: Int[Tensor, "*batch classes"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Sum of ``max(0, 1 - (scores[j] - scores[k])) / classes`` over all classes j that apply and all k that do not.

    Args:
        scores: ``[batch, classes]`` or ``[classes]``.
        target: of the same shape: the classes that apply, then -1 if there is room; what follows is not read. A
            class that is named twice counts twice.
        reduction: over the examples: "mean" (0 for an empty batch), "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.
    """
    check_reduction(reduction)
    check_same_shape("multi_label_margin_loss", prediction=scores, target=target)
    _check_scores("multi_label_margin_loss", scores)
    target = target.long()

    def formula(scores: Tensor) -> Tensor:
        named = (target < 0).cumsum(-1) == 0
        index = torch.where(named, target, 0)
        classes = torch.arange(scores.shape[-1], device=scores.device)
        applies = ((index.unsqueeze(-1) == classes) & named.unsqueeze(-1)).any(-2)
        excess = (1 - scores.gather(-1, index).unsqueeze(-1) + scores.unsqueeze(-2)).relu()
        compared = named.unsqueeze(-1) & ~applies.unsqueeze(-2)
        return _reduced(torch.where(compared, excess, 0).sum(-1).mean(-1), reduction)

    if not (_has_kernel(scores) and may_fuse(scores, target)):
        return formula(scores)
    options = (target, _ENUM[reduction])
    kernel = Kernel(
        lambda scores: _aten.multilabel_margin_loss_forward.default(scores, *options),
        lambda gradient, scores, applies: _aten.multilabel_margin_loss_backward.default(
            gradient, scores, *options, applies
        ),
    )
    return differentiable_twice(kernel, formula, scores)


def hinge_embedding_loss(
    prediction: Float[Tensor, "*shape"],
    target: Num[Tensor, "*shape"],
    *,
    margin: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """A distance itself where the target is 1, ``max(0, margin - distance)`` where it is -1.

    Args:
        prediction: distances of pairs, any shape.
        target: of the same shape, 1 for pairs that belong together and -1 for others.
        margin: the distance from which on others are far enough apart.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("hinge_embedding_loss", prediction=prediction, target=target)
    check_reduction(reduction)
    return F.hinge_embedding_loss(prediction, target, margin, reduction=reduction)


def soft_margin_loss(
    prediction: Float[Tensor, "*shape"], target: Num[Tensor, "*shape"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "*reduced"]:
    """``log(1 + exp(-target prediction))``, which stays finite where torch's exponential overflows.

    Args:
        prediction: any shape.
        target: of the same shape, 1 or -1.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("soft_margin_loss", prediction=prediction, target=target)
    # From this threshold on the result is its argument to the last digit of float64.
    return reduced(F.softplus(-target * prediction, threshold=40), reduction)


def _check_scores(loss: str, scores: Tensor) -> None:
    if scores.ndim not in (1, 2):
        raise ShapeError(
            f"{loss}: the prediction must be [batch, classes] or [classes], got shape {list(scores.shape)}. Flatten "
            f"the dimensions before the classes into one, or use vmap."
        )


def _has_kernel(scores: Tensor) -> bool:
    # On empty batches one of the kernels leaves its result unset.
    return scores.dtype in (torch.float32, torch.float64) and scores.numel() > 0


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    # torch's kernels add terms that are divided by the batch, so the mean of none is 0.
    return loss.sum() if loss.numel() == 0 and reduction == "mean" else reduced(loss, reduction)


@binds(multi_margin_loss)
@container
class MultiMarginLoss(Layer):
    """`multi_margin_loss` with its options.

    Attributes:
        p: 1 or 2.
        margin: by how much the right class should lead.
        weight: factor of the examples of each class, or None.
        reduction: "mean", "sum" or "none".
    """

    p: int = static(default=1)
    margin: float = static(default=1.0)
    weight: Float[Tensor, " classes"] | None = buffer(default=None)
    reduction: Reduction = static(default="mean")


@binds(multi_label_margin_loss)
@container
class MultiLabelMarginLoss(Layer):
    """`multi_label_margin_loss` with its options.

    Attributes:
        reduction: "mean", "sum" or "none".
    """

    reduction: Reduction = static(default="mean")


@binds(hinge_embedding_loss)
@container
class HingeEmbeddingLoss(Layer):
    """`hinge_embedding_loss` with its options.

    Attributes:
        margin: the distance from which on others are far enough apart.
        reduction: "mean", "sum" or "none".
    """

    margin: float = static(default=1.0)
    reduction: Reduction = static(default="mean")


@binds(soft_margin_loss)
@container
class SoftMarginLoss(Layer):
    """`soft_margin_loss` with its options.

    Attributes:
        reduction: "mean", "sum" or "none".
    """

    reduction: Reduction = static(default="mean")
