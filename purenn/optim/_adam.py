"""Adam and AdamW: steps scaled by running moments of the gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purenn.optim._hyperparameters import Hyperparameter, Values, require_betas, require_not_negative
from purenn.optim._parts import Select, multi_transform
from purenn.optim._private import kernels
from purenn.optim._rule import COUPLED, DECOUPLED, Rule, like, optimizer
from purenn.optim._tensor_list import V, root, toward
from purenn.optim._transformation import GradientTransformation
from purenn.tree import container

Betas = tuple[Hyperparameter, Hyperparameter]


@container
class AdamState:
    """State of `adam` and its relatives.

    Attributes:
        count: number of steps done, an int64 scalar.
        mean: running mean of the gradient, a tree like the parameters.
        square: running mean of its square.
        largest: the largest `square` so far, None but for amsgrad.
    """

    count: Tensor
    mean: Any
    square: Any
    largest: Any = None


def moments(g: V, mean: V, square: V, values: Values) -> tuple[V, V]:
    """The running mean of the gradient and of its square, one step on."""
    beta = values["beta2"]
    return toward(mean, g, 1 - values["beta1"]), square * beta + g * g * (1 - beta)


def corrections(step: Any, values: Values) -> Values:
    """What the running means after some steps have to be divided by, since they started at zero."""
    return {"correction1": 1 - values["beta1"] ** step, "correction2": 1 - values["beta2"] ** step}


def normalized(mean: V, square: V, values: Values) -> V:
    """The mean over the root of the square, both corrected."""
    return mean / values["correction1"] / (root(square) / values["correction2"] ** 0.5 + values["eps"])


def adam_hyperparameters(
    name: str,
    learning_rate: Hyperparameter,
    betas: Betas,
    eps: Hyperparameter,
    weight_decay: Hyperparameter,
    **others: Hyperparameter,
) -> dict[str, Hyperparameter]:
    """What Adam and its relatives are given, by the names that a `Rule` has for it.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.
    """
    require_betas(name, betas)
    require_not_negative(name, learning_rate=learning_rate, eps=eps, weight_decay=weight_decay, **others)
    given = {"rate": learning_rate, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
    return {**given, **others}


def adam(
    learning_rate: Hyperparameter,
    *,
    betas: Betas = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """Adam with bias correction; the same numbers as `torch.optim.Adam`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        betas: how much of the running mean and of the running square is kept. Default: (0.9, 0.999).
        eps: added to the root of the square. Default: 1e-8.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        amsgrad: whether to divide by the root of the largest square so far. Default: False.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.

    Source:
        Kingma, Ba: Adam, a Method for Stochastic Optimization, 2015, algorithm 1. Reddi, Kale, Kumar: On the
        Convergence of Adam and Beyond, 2018.
    """
    return _adam("adam", COUPLED, kernels._fused_adam_, learning_rate, betas, eps, weight_decay, amsgrad, maximize)


def adamw(
    learning_rate: Hyperparameter,
    *,
    betas: Betas = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.01,
    amsgrad: bool = False,
    maximize: bool = False,
    decayed: Select | None = None,
) -> GradientTransformation:
    """Adam with decoupled weight decay; the same numbers as `torch.optim.AdamW`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        betas: how much of the running mean and of the running square is kept. Default: (0.9, 0.999).
        eps: added to the root of the square. Default: 1e-8.
        weight_decay: the parameters shrink by this times the learning rate. Default: 0.01.
        amsgrad: whether to divide by the root of the largest square so far. Default: False.
        maximize: whether to go uphill. Default: False.
        decayed: the leaves that decay: path patterns, or a function of ``select(params)``. Default: all.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.

    Source:
        Loshchilov, Hutter: Decoupled Weight Decay Regularization, 2019, algorithm 2.

    Example:
        >>> import purenn as pn
        >>> optimizer = pn.optim.adamw(1e-3, weight_decay=0.1, decayed="**.weight")
    """

    def make(decay: Hyperparameter) -> GradientTransformation:
        return _adam("adamw", DECOUPLED, kernels._fused_adamw_, learning_rate, betas, eps, decay, amsgrad, maximize)

    return make(weight_decay) if decayed is None else multi_transform([(decayed, make(weight_decay))], default=make(0))


def _adam(
    name: str,
    decay: str,
    fused: Callable[..., None],
    learning_rate: Hyperparameter,
    betas: Betas,
    eps: Hyperparameter,
    weight_decay: Hyperparameter,
    amsgrad: bool,
    maximize: bool,
) -> GradientTransformation:
    given = adam_hyperparameters(name, learning_rate, betas, eps, weight_decay)

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        mean, square = moments(g, slots[0], slots[1], values)
        kept = (mean, square, slots[2].maximum(square)) if amsgrad else (mean, square)
        return normalized(mean, kept[-1], values), kept

    def kernel(ws: list[Tensor], gs: list[Tensor], slots: list[list[Tensor]], step: int, values: Values) -> None:
        steps = [torch.full((), step, dtype=torch.float32, device=ws[0].device)] * len(ws)
        fused(
            ws,
            gs,
            slots[0],
            slots[1],
            slots[2] if amsgrad else [],
            steps,
            lr=values["rate"],
            beta1=values["beta1"],
            beta2=values["beta2"],
            weight_decay=values["weight_decay"],
            eps=values["eps"],
            amsgrad=amsgrad,
            maximize=maximize,
        )

    return optimizer(
        Rule(
            name=name,
            state=AdamState,
            slots=("mean", "square", "largest") if amsgrad else ("mean", "square"),
            begin=lambda w, _: (like(w), like(w), like(w)) if amsgrad else (like(w), like(w)),
            direction=direction,
            hyperparameters=given,
            scalars=corrections,
            kernel=kernel,
            decay=decay,
            maximize=maximize,
        )
    )
