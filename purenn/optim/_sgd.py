"""Stochastic gradient descent, also with the average of its iterates."""

from typing import Any

from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._hyperparameters import Hyperparameter, Values, is_zero, require_not_negative, where
from purenn.optim._private import kernels
from purenn.optim._rule import Rule, like, optimizer
from purenn.optim._tensor_list import V, toward
from purenn.optim._transformation import GradientTransformation
from purenn.tree import container


@container
class SgdState:
    """State of `sgd`.

    Attributes:
        count: number of steps done, an int64 scalar.
        velocity: a tree like the parameters, None without momentum.
    """

    count: Tensor
    velocity: Any = None


def sgd(
    learning_rate: Hyperparameter,
    *,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """``v = momentum v + (1 - dampening) g``, ``w = w - learning_rate v``; the same numbers as `torch.optim.SGD`.

    Args:
        learning_rate: the step size; as all numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        momentum: the share of the last velocity that is kept. Default: 0.
        dampening: the share of the gradient that does not enter the velocity, but for the first step. Default: 0.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        nesterov: whether to step along ``g + momentum v``. Default: False.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a negative number, or `nesterov` without momentum or with dampening.
    """
    require_not_negative(
        "sgd", learning_rate=learning_rate, momentum=momentum, dampening=dampening, weight_decay=weight_decay
    )
    moves = not is_zero(momentum)
    if nesterov and not moves:
        raise ArgumentError("sgd: nesterov=True needs a momentum above 0.")
    if nesterov and not is_zero(dampening):
        raise ArgumentError("sgd: nesterov=True needs dampening=0.")
    given = {"rate": learning_rate, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}

    def scalars(step: Any, values: Values) -> Values:
        if is_zero(values["dampening"]):
            return {"share": 1.0}
        return {"share": where(step == 1, 1.0, 1 - values["dampening"])}

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        if not moves:
            return g, ()
        velocity = slots[0] * values["momentum"] + g * values["share"]
        return g + velocity * values["momentum"] if nesterov else velocity, (velocity,)

    def kernel(ws: list[Tensor], gs: list[Tensor], slots: list[list[Tensor]], step: int, values: Values) -> None:
        kernels._fused_sgd_(
            ws,
            gs,
            slots[0] if moves else [],
            weight_decay=values["weight_decay"],
            momentum=values["momentum"],
            lr=values["rate"],
            dampening=values["dampening"],
            nesterov=nesterov,
            maximize=maximize,
            is_first_step=step == 1,
        )

    return optimizer(
        Rule(
            name="sgd",
            state=SgdState,
            slots=("velocity",) if moves else (),
            begin=lambda w, _: (like(w),) if moves else (),
            direction=direction,
            hyperparameters=given,
            scalars=scalars,
            kernel=kernel,
            maximize=maximize,
            plain=not moves,
        )
    )


@container
class AsgdState:
    """State of `asgd`.

    Attributes:
        count: number of steps done, an int64 scalar.
        average: the average of the parameters, a tree like them.
    """

    count: Tensor
    average: Any


def asgd(
    learning_rate: Hyperparameter,
    *,
    decay: Hyperparameter = 1e-4,
    power: Hyperparameter = 0.75,
    start: Hyperparameter = 1e6,
    weight_decay: Hyperparameter = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    """Averaged stochastic gradient descent; the same numbers as `torch.optim.ASGD`.

    Step ``t`` goes by ``g + decay w`` times ``learning_rate / (1 + decay learning_rate (t - 1)) ** power``. The average
    of the parameters is in the state; evaluate ``pn.tree.map(lambda w, mean: mean, params, state.average)``.

    Args:
        learning_rate: the step size at the beginning.
        decay: torch's ``lambd``. Default: 1e-4.
        power: torch's ``alpha``. Default: 0.75.
        start: torch's ``t0``: the number of steps before averaging starts; until then the average is the parameters.
            Default: 1e6.
        weight_decay: this multiple of the parameters is added to their gradients. Default: 0.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a negative number.

    Source:
        Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992.
    """
    given = {"rate": learning_rate, "decay_rate": decay, "power": power, "start": start, "weight_decay": weight_decay}
    require_not_negative(
        "asgd", learning_rate=learning_rate, decay=decay, power=power, start=start, weight_decay=weight_decay
    )

    def scalars(step: Any, values: Values) -> Values:
        rate = values["rate"] / (1 + values["decay_rate"] * values["rate"] * (step - 1)) ** values["power"]
        averaged = step - 1 - values["start"]
        return {"rate": rate, "share": 1 / where(averaged > 1, averaged, 1.0)}

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        downhill = g + w * values["decay_rate"]
        return downhill, (toward(slots[0], w - downhill * values["rate"], values["share"]),)

    return optimizer(
        Rule(
            name="asgd",
            state=AsgdState,
            slots=("average",),
            begin=lambda w, _: (w.clone(),),
            direction=direction,
            hyperparameters=given,
            scalars=scalars,
            maximize=maximize,
        )
    )
