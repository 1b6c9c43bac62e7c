"""Losses that are likelihoods: of counts, of numbers with an uncertainty, and of one distribution under another."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from purenn._kernels import may_use_kernels
from purenn.errors import ArgumentError, ShapeError
from purenn.losses._binds import binds
from purenn.losses._reduction import Reduction, check_same_shape, reduced
from purenn.tree import Layer, container, static


def poisson_nll_loss(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Negative log likelihood of counts whose distribution is Poisson's, ``rate - target log(rate) + log(target!)``.

    Args:
        prediction: the logarithm of the expected counts, or these themselves if `log_input` is False; any shape.
        target: the counts, of the same shape.
        log_input: whether `prediction` is a logarithm.
        full: whether to add the last term, by Stirling's formula, where the count is above 1. It does not depend on the
            prediction.
        eps: added to the rate before its logarithm is taken, when `log_input` is False.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.
    """
    check_same_shape("poisson_nll_loss", prediction=prediction, target=target)
    rate, log_rate = (prediction.exp(), prediction) if log_input else (prediction, (prediction + eps).log())
    loss = rate - target * log_rate
    if full:
        # A count for which the formula has a value takes the place of small ones, so that their gradients are no NaN.
        large = torch.where(target > 1, target, 2)
        stirling = large * large.log() - large + 0.5 * (2 * math.pi * large).log()
        loss = loss + torch.where(target > 1, stirling, 0)
    return reduced(loss, reduction)


def gaussian_nll_loss(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    var: Float[Tensor, "*variances"] | float,
    *,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Negative log likelihood of normal numbers, ``(log(var) + (prediction - target)^2 / var) / 2``.

    Args:
        prediction: the expected values, any shape.
        target: the numbers, of the same shape.
        var: the variances: a positive number, one for each element, or a tensor without the last dimension, or with
            size 1 in some, for elements that share theirs. It is not checked that they are positive, which would depend
            on the data.
        full: whether to add the constant ``log(2 pi) / 2``.
        eps: smaller variances count as this one; their gradient is that of `eps`, so that they can grow again.
        reduction: over all elements: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction, or a variance that is a negative number.

    Source:
        Nix, Weigend: Estimating the Mean and Variance of the Target Probability Distribution, 1994.
    """
    check_same_shape("gaussian_nll_loss", prediction=prediction, target=target)
    var = _variances(prediction, var)
    var = _at_least(eps, var)
    loss = 0.5 * (var.log() + (prediction - target).square() / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduced(loss, reduction)


def _at_least(eps: float, var: Tensor) -> Tensor:
    # With the derivative 1 everywhere.
    if not may_use_kernels(var):
        return torch.where(var < eps, eps + (var - var.detach()), var)
    own = var.clone()
    with torch.no_grad():
        return own.clamp_(min=eps)


def _variances(prediction: Tensor, var: Tensor | float) -> Tensor:
    if not isinstance(var, Tensor):
        if var < 0:
            raise ArgumentError(f"gaussian_nll_loss: var must not be negative, got {var}.")
        return prediction.new_full((), var)
    if var.shape == prediction.shape:
        return var
    if var.shape == prediction.shape[:-1]:
        return var.unsqueeze(-1)
    if var.ndim != prediction.ndim or any(
        size not in (1, full) for size, full in zip(var.shape, prediction.shape, strict=True)
    ):
        raise ShapeError(
            f"gaussian_nll_loss: var must have the shape of the prediction, {list(prediction.shape)}, the same with "
            f"size 1 in some dimensions, or the same without the last dimension; got {list(var.shape)}."
        )
    return var


def kl_div(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    log_target: bool = False,
    reduction: Literal["mean", "batchmean", "sum", "none"] = "mean",
) -> Float[Tensor, "*reduced"]:
    """Terms of the Kullback-Leibler divergence from the target, ``target (log(target) - prediction)``.

    Args:
        prediction: logarithms of probabilities, any shape.
        target: probabilities, or their logarithms if `log_target`, of the same shape.
        log_target: whether `target` is a logarithm.
        reduction: "batchmean" is the divergence itself, averaged over the first dimension; "mean" divides the sum by
            the number of all elements, as torch does (with a warning); "sum" and "none" as elsewhere.

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.

    Source:
        Kullback, Leibler: On Information and Sufficiency, 1951.
    """
    check_same_shape("kl_div", prediction=prediction, target=target)
    loss = target.exp() * (target - prediction) if log_target else torch.xlogy(target, target) - target * prediction
    if reduction == "batchmean":
        return loss.sum() / prediction.shape[0] if prediction.ndim > 0 else loss
    if reduction not in ("mean", "sum", "none"):
        raise ArgumentError(f"reduction must be 'mean', 'batchmean', 'sum' or 'none', got {reduction!r}.")
    return reduced(loss, reduction)


@binds(poisson_nll_loss)
@container
class PoissonNLLLoss(Layer):
    """`poisson_nll_loss` with its options.

    Attributes:
        log_input: whether the prediction is a logarithm.
        full: whether to add Stirling's formula for ``log(target!)``.
        eps: keeps the logarithm of 0 away.
        reduction: "mean", "sum" or "none".
    """

    log_input: bool = static(default=True)
    full: bool = static(default=False)
    eps: float = static(default=1e-8)
    reduction: Reduction = static(default="mean")


@binds(gaussian_nll_loss)
@container
class GaussianNLLLoss(Layer):
    """`gaussian_nll_loss` with its options; it is applied to prediction, target and variance.

    Attributes:
        full: whether to add the constant term.
        eps: the smallest variance.
        reduction: "mean", "sum" or "none".
    """

    full: bool = static(default=False)
    eps: float = static(default=1e-6)
    reduction: Reduction = static(default="mean")


@binds(kl_div)
@container
class KLDivLoss(Layer):
    """`kl_div` with its options.

    Attributes:
        reduction: "mean", "batchmean", "sum" or "none".
        log_target: whether the target is a logarithm.
    """

    reduction: Literal["mean", "batchmean", "sum", "none"] = static(default="mean")
    log_target: bool = static(default=False)
