"""LAMB: Adam's direction, with steps in proportion to the norm of the parameter."""

from typing import Any

import torch
from torch import Tensor

from purenn.optim._adam import AdamState, Betas, adam_hyperparameters, corrections, moments, normalized
from purenn.optim._hyperparameters import Hyperparameter, Values, is_zero
from purenn.optim._rule import OWN, Rule, like, optimizer
from purenn.optim._tensor_list import root
from purenn.optim._transformation import GradientTransformation


def lamb(
    learning_rate: Hyperparameter,
    *,
    betas: Betas = (0.9, 0.999),
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    """Adam for large batches: every leaf moves by `learning_rate` of its norm; the same numbers as `optax.lamb`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        betas: how much of the running mean and of the running square is kept. Default: (0.9, 0.999).
        eps: added to the root of the square. Default: 1e-6.
        weight_decay: this multiple of the parameters is added to Adam's direction. Default: 0.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.

    Source:
        You et al.: Large Batch Optimization for Deep Learning, 2020, algorithm 2.
    """
    given = adam_hyperparameters("lamb", learning_rate, betas, eps, weight_decay)

    def direction(g: Tensor, w: Tensor, slots: tuple[Tensor, ...], values: Values) -> tuple[Tensor, tuple[Tensor, ...]]:
        mean, square = moments(g, slots[0], slots[1], values)
        adapted = normalized(mean, square, values)
        if not is_zero(values["weight_decay"]):
            adapted = adapted + w * values["weight_decay"]
        return adapted * trust(w, adapted), (mean, square)

    return optimizer(
        Rule(
            name="lamb",
            state=AdamState,
            slots=("mean", "square"),
            begin=lambda w, _: (like(w), like(w)),
            direction=direction,
            hyperparameters=given,
            scalars=corrections,
            elementwise=False,
            decay=OWN,
            maximize=maximize,
        )
    )


def trust(w: Tensor, direction: Tensor) -> Any:
    """The norm of a parameter over that of its direction, 1 where either is zero."""
    above, below = norm(w), norm(direction)
    undefined = (above == 0) | (below == 0)
    return torch.where(undefined, 1.0, above / below.masked_fill(undefined, 1))


def norm(x: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """The Euclidean norm, of the whole tensor or over some axes that are kept; with the derivative 0 at 0."""
    square = (x * x.conj()).real if x.is_complex() else x * x
    return root(square.sum() if dim is None else square.sum(dim, keepdim=True))
