"""Steps scaled by the squares of past gradients: Adagrad, RMSprop, Adadelta."""

from typing import Any

import torch
from torch import Tensor

from purenn.optim._hyperparameters import (
    Hyperparameter,
    Values,
    is_zero,
    require_fraction,
    require_not_negative,
)
from purenn.optim._private import kernels
from purenn.optim._rule import Rule, like, optimizer
from purenn.optim._tensor_list import V, root, toward
from purenn.optim._transformation import GradientTransformation
from purenn.tree import container


@container
class AdagradState:
    """State of `adagrad`.

    Attributes:
        count: number of steps done, an int64 scalar.
        total: sum of the squared gradients, a tree like the parameters.
    """

    count: Tensor
    total: Any


def adagrad(
    learning_rate: Hyperparameter,
    *,
    learning_rate_decay: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    initial_total: Hyperparameter = 0.0,
    eps: Hyperparameter = 1e-10,
    maximize: bool = False,
) -> GradientTransformation:
    """Steps divided by the root of the sum of all squared gradients; the same numbers as `torch.optim.Adagrad`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        learning_rate_decay: step ``t`` is divided by ``1 + learning_rate_decay (t - 1)`` as well. Default: 0.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        initial_total: where the sum starts. Default: 0.
        eps: added to the root. Default: 1e-10.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a negative number.

    Source:
        Duchi, Hazan, Singer: Adaptive Subgradient Methods, 2011.
    """
    given: dict[str, Hyperparameter] = {
        "rate": learning_rate,
        "learning_rate_decay": learning_rate_decay,
        "weight_decay": weight_decay,
        "initial_total": initial_total,
        "eps": eps,
    }
    require_not_negative("adagrad", learning_rate=learning_rate, **{k: v for k, v in given.items() if k != "rate"})

    def scalars(step: Any, values: Values) -> Values:
        return {"whole_rate": values["rate"], "rate": values["rate"] / (1 + (step - 1) * values["learning_rate_decay"])}

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        total = slots[0] + g * g
        return g / (root(total) + values["eps"]), (total,)

    def kernel(ws: list[Tensor], gs: list[Tensor], slots: list[list[Tensor]], step: int, values: Values) -> None:
        kernels._fused_adagrad_(
            ws,
            gs,
            slots[0],
            [torch.full((), step, dtype=torch.float32, device=ws[0].device)] * len(ws),
            lr=values["whole_rate"],
            lr_decay=values["learning_rate_decay"],
            weight_decay=values["weight_decay"],
            eps=values["eps"],
            maximize=maximize,
        )

    return optimizer(
        Rule(
            name="adagrad",
            state=AdagradState,
            slots=("total",),
            begin=lambda w, values: (like(w, values["initial_total"]),),
            direction=direction,
            hyperparameters=given,
            scalars=scalars,
            kernel=kernel,
            kernel_devices=("cpu",),
            maximize=maximize,
        )
    )


@container
class RmspropState:
    """State of `rmsprop`.

    Attributes:
        count: number of steps done, an int64 scalar.
        square: running mean of the squared gradient, a tree like the parameters.
        mean: running mean of the gradient, None if it is not centered.
        velocity: None without momentum.
    """

    count: Tensor
    square: Any
    mean: Any = None
    velocity: Any = None


def rmsprop(
    learning_rate: Hyperparameter,
    *,
    decay: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """Steps divided by the root of the running square of the gradient; the same numbers as `torch.optim.RMSprop`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        decay: torch's ``alpha``: how much of the running square is kept. Default: 0.99.
        eps: added to the root. Default: 1e-8.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        momentum: the share of the last velocity that is kept. Default: 0.
        centered: whether to divide by the running standard deviation instead. Default: False.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a negative number, or a decay outside [0, 1).

    Source:
        Tieleman, Hinton: lecture 6.5 of Neural Networks for Machine Learning, 2012. Graves: Generating Sequences with
        Recurrent Neural Networks, 2013 (centered).
    """
    require_fraction("rmsprop", decay=decay)
    require_not_negative("rmsprop", learning_rate=learning_rate, eps=eps, weight_decay=weight_decay, momentum=momentum)
    moves = not is_zero(momentum)
    given = {"rate": learning_rate, "kept": decay, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    slots = ("square", *(("mean",) if centered else ()), *(("velocity",) if moves else ()))

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        square = slots[0] * values["kept"] + g * g * (1 - values["kept"])
        new, spread = (square,), square
        if centered:
            mean = toward(slots[1], g, 1 - values["kept"])
            new, spread = (square, mean), square - mean * mean
        scaled = g / (root(spread) + values["eps"])
        if not moves:
            return scaled, new
        velocity = slots[-1] * values["momentum"] + scaled
        return velocity, (*new, velocity)

    return optimizer(
        Rule(
            name="rmsprop",
            state=RmspropState,
            slots=slots,
            begin=lambda w, _: tuple([like(w) for _ in slots]),
            direction=direction,
            hyperparameters=given,
            maximize=maximize,
        )
    )


@container
class AdadeltaState:
    """State of `adadelta`.

    Attributes:
        count: number of steps done, an int64 scalar.
        square: running mean of the squared gradient, a tree like the parameters.
        change: running mean of the squared step.
    """

    count: Tensor
    square: Any
    change: Any


def adadelta(
    learning_rate: Hyperparameter = 1.0,
    *,
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    """Steps of the size of past steps; the same numbers as `torch.optim.Adadelta`.

    Args:
        learning_rate: scales the steps; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule. Default: 1.
        decay: torch's ``rho``: how much of the running squares is kept. Default: 0.9.
        eps: added to the squares. Default: 1e-6.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a negative number, or a decay outside [0, 1).

    Source:
        Zeiler: ADADELTA, an Adaptive Learning Rate Method, 2012, algorithm 1.
    """
    require_fraction("adadelta", decay=decay)
    require_not_negative("adadelta", learning_rate=learning_rate, eps=eps, weight_decay=weight_decay)
    given = {"rate": learning_rate, "kept": decay, "eps": eps, "weight_decay": weight_decay}

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        kept, eps = values["kept"], values["eps"]
        square = slots[0] * kept + g * g * (1 - kept)
        step = (slots[1] + eps).sqrt() / (square + eps).sqrt() * g
        return step, (square, slots[1] * kept + step * step * (1 - kept))

    return optimizer(
        Rule(
            name="adadelta",
            state=AdadeltaState,
            slots=("square", "change"),
            begin=lambda w, _: (like(w), like(w)),
            direction=direction,
            hyperparameters=given,
            maximize=maximize,
        )
    )
