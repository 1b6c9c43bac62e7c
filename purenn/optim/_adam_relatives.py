"""Relatives of Adam: with Nesterov momentum, with rectified variance, with the largest gradient as the scale."""

from typing import Any

import torch
from torch import Tensor

from purenn.optim._adam import AdamState, Betas, adam_hyperparameters, corrections, moments
from purenn.optim._hyperparameters import Hyperparameter, Values, where
from purenn.optim._rule import COUPLED, DECOUPLED, Rule, like, optimizer
from purenn.optim._tensor_list import V, root, toward
from purenn.optim._transformation import GradientTransformation
from purenn.tree import container


@container
class NadamState:
    """State of `nadam`.

    Attributes:
        count: number of steps done, an int64 scalar.
        product: product of the momenta of all steps, a float64 scalar.
        mean: running mean of the gradient, a tree like the parameters.
        square: running mean of its square.
    """

    count: Tensor
    product: Tensor
    mean: Any
    square: Any


def nadam(
    learning_rate: Hyperparameter,
    *,
    betas: Betas = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum_decay: Hyperparameter = 0.004,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """Adam with Nesterov momentum; the same numbers as `torch.optim.NAdam`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        betas: how much of the running mean and of the running square is kept. Default: (0.9, 0.999).
        eps: added to the root of the square. Default: 1e-8.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        momentum_decay: how fast the momentum grows from half of the first beta to all of it. Default: 0.004.
        decoupled_weight_decay: whether weight decay is as in `adamw`. Default: False.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.

    Source:
        Dozat: Incorporating Nesterov Momentum into Adam, 2016.
    """
    given = adam_hyperparameters("nadam", learning_rate, betas, eps, weight_decay, momentum_decay=momentum_decay)

    def scalars(step: Any, values: Values) -> Values:
        def momentum(step: Any) -> Any:
            return values["beta1"] * (1 - 0.5 * 0.96 ** (step * values["momentum_decay"]))

        now, following = momentum(step), momentum(step + 1)
        product = values["product"] * now
        return {
            **corrections(step, values),
            "product": product,
            "of_gradient": (1 - now) / (1 - product),
            "of_mean": following / (1 - product * following),
        }

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        mean, square = moments(g, slots[0], slots[1], values)
        below = root(square) / values["correction2"] ** 0.5 + values["eps"]
        return (g * values["of_gradient"] + mean * values["of_mean"]) / below, (mean, square)

    return optimizer(
        Rule(
            name="nadam",
            state=NadamState,
            slots=("mean", "square"),
            begin=lambda w, _: (like(w), like(w)),
            direction=direction,
            hyperparameters=given,
            scalars=scalars,
            carried=("product",),
            decay=DECOUPLED if decoupled_weight_decay else COUPLED,
            maximize=maximize,
        )
    )


def radam(
    learning_rate: Hyperparameter,
    *,
    betas: Betas = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """Adam that scales its steps only as far as the running square can be trusted; the numbers of `torch.optim.RAdam`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        betas: how much of the running mean and of the running square is kept. Default: (0.9, 0.999).
        eps: added to the root of the square. Default: 1e-8.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        decoupled_weight_decay: whether weight decay is as in `adamw`. Default: False.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.

    Source:
        Liu et al.: On the Variance of the Adaptive Learning Rate and Beyond, 2020, algorithm 2.
    """
    given = adam_hyperparameters("radam", learning_rate, betas, eps, weight_decay)

    def scalars(step: Any, values: Values) -> Values:
        known, beta = corrections(step, values), values["beta2"]
        longest = 2 / (1 - beta) - 1
        length = longest - 2 * step * beta**step / known["correction2"]
        trusted = length > 5
        # Where it is not trusted any other length will do: what comes of it is not used, but must exist.
        length, longest = where(trusted, length, 6.0), where(longest > 5, longest, 6.0)
        share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return {**known, "trusted": trusted, "scale": (share * known["correction2"]) ** 0.5}

    def direction(g: Any, w: Any, slots: tuple[Any, ...], values: Values) -> tuple[Any, tuple[Any, ...]]:
        mean, square = moments(g, slots[0], slots[1], values)
        corrected, trusted = mean / values["correction1"], values["trusted"]
        if trusted is False:
            return corrected, (mean, square)
        step = corrected / (root(square) + values["eps"]) * values["scale"]
        return torch.where(trusted, step, corrected) if isinstance(trusted, Tensor) else step, (mean, square)

    return optimizer(
        Rule(
            name="radam",
            state=AdamState,
            slots=("mean", "square"),
            begin=lambda w, _: (like(w), like(w)),
            direction=direction,
            hyperparameters=given,
            scalars=scalars,
            decay=DECOUPLED if decoupled_weight_decay else COUPLED,
            maximize=maximize,
        )
    )


@container
class AdamaxState:
    """State of `adamax`.

    Attributes:
        count: number of steps done, an int64 scalar.
        mean: running mean of the gradient, a tree like the parameters.
        norm: the largest gradient, older ones counting less.
    """

    count: Tensor
    mean: Any
    norm: Any


def adamax(
    learning_rate: Hyperparameter,
    *,
    betas: Betas = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    """Adam with the largest gradient as the scale; the same numbers as `torch.optim.Adamax`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        betas: how much of the running mean and of the largest gradient is kept. Default: (0.9, 0.999).
        eps: added to the size of the gradient. Default: 1e-8.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.

    Source:
        Kingma, Ba: Adam, a Method for Stochastic Optimization, 2015, algorithm 2.
    """
    given = adam_hyperparameters("adamax", learning_rate, betas, eps, weight_decay)

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        mean = toward(slots[0], g, 1 - values["beta1"])
        norm = (slots[1] * values["beta2"]).maximum(g.abs() + values["eps"])
        return mean / values["correction1"] / norm, (mean, norm)

    return optimizer(
        Rule(
            name="adamax",
            state=AdamaxState,
            slots=("mean", "norm"),
            begin=lambda w, _: (like(w), like(w)),
            direction=direction,
            hyperparameters=given,
            scalars=corrections,
            maximize=maximize,
        )
    )
