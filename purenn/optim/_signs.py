"""Steps by the sign of the gradient: Rprop and Lion."""

from typing import Any

from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._adam import Betas
from purenn.optim._hyperparameters import Hyperparameter, Values, require_betas, require_not_negative
from purenn.optim._rule import DECOUPLED, OWN, Rule, like, optimizer
from purenn.optim._tensor_list import V, toward
from purenn.optim._transformation import GradientTransformation
from purenn.tree import container


@container
class RpropState:
    """State of `rprop`.

    Attributes:
        count: number of steps done, an int64 scalar.
        last: the last gradient, a tree like the parameters; zero where the sign had changed.
        size: the step size of every element.
    """

    count: Tensor
    last: Any
    size: Any


def rprop(
    learning_rate: float | Tensor,
    *,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    maximize: bool = False,
) -> GradientTransformation:
    """Steps by the sign of the gradient, of a size of their own for each element; the numbers of `torch.optim.Rprop`.

    A size grows while the sign stays and shrinks when it changes. Meant for gradients of all data at once.

    Args:
        learning_rate: all sizes at the beginning, a number or a tensor without dimensions.
        etas: the factors by which a size shrinks and grows. Default: (0.5, 1.2).
        step_sizes: the smallest and the largest size. Default: (1e-6, 50).
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a negative learning rate or a schedule, or factors that do not shrink and grow.

    Source:
        Riedmiller, Braun: A Direct Adaptive Method for Faster Backpropagation Learning, 1993.
    """
    require_not_negative("rprop", learning_rate=learning_rate)
    if callable(learning_rate):
        raise ArgumentError("rprop: learning_rate is the step size at the beginning and cannot be a schedule.")
    shrink, grow = etas
    if not 0 < shrink < 1 < grow:
        raise ArgumentError(f"rprop: etas must be a number between 0 and 1 and one above 1, got {etas}.")
    smallest, largest = step_sizes

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        last, size = slots
        # The memory layout of the state goes first, so that it stays as it is.
        same = (last * g).sign()
        changed = (-same).clamp(0, 1)
        factor = same.clamp(0, 1) * (grow - 1) + changed * (shrink - 1) + 1
        size = (size * factor).clamp(smallest, largest)
        g = (1 + -changed) * g
        return g.sign() * size, (g, size)

    return optimizer(
        Rule(
            name="rprop",
            state=RpropState,
            slots=("last", "size"),
            begin=lambda w, values: (like(w), like(w, values["initial"])),
            direction=direction,
            hyperparameters={"rate": 1.0, "initial": learning_rate},
            decay=OWN,
            maximize=maximize,
        )
    )


@container
class LionState:
    """State of `lion`.

    Attributes:
        count: number of steps done, an int64 scalar.
        mean: running mean of the gradient, a tree like the parameters.
    """

    count: Tensor
    mean: Any


def lion(
    learning_rate: Hyperparameter,
    *,
    betas: Betas = (0.9, 0.99),
    weight_decay: Hyperparameter = 1e-3,
    maximize: bool = False,
) -> GradientTransformation:
    """Steps by the sign of the gradient mixed with its running mean; the same numbers as `optax.lion`.

    Args:
        learning_rate: the step size, of all elements; as all numbers here a float, a tensor without dimensions (which
            may be differentiated) or a schedule. A tenth of Adam's is usual.
        betas: the share of the running mean in the mixture, and how much of the mean is kept. Default: (0.9, 0.99).
        weight_decay: the parameters shrink by this times the learning rate. Default: 0.001.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative number.

    Source:
        Chen et al.: Symbolic Discovery of Optimization Algorithms, 2023, program 1.
    """
    require_betas("lion", betas)
    require_not_negative("lion", learning_rate=learning_rate, weight_decay=weight_decay)
    given = {"rate": learning_rate, "beta1": betas[0], "beta2": betas[1], "weight_decay": weight_decay}

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        mixed = toward(slots[0], g, 1 - values["beta1"])
        return mixed.sign(), (toward(slots[0], g, 1 - values["beta2"]),)

    return optimizer(
        Rule(
            name="lion",
            state=LionState,
            slots=("mean",),
            begin=lambda w, _: (like(w),),
            direction=direction,
            hyperparameters=given,
            decay=DECOUPLED,
            maximize=maximize,
        )
    )
