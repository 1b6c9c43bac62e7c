"""Sophia: steps scaled by a running estimate of the Hessian's diagonal, and clipped."""

from typing import Any

from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._hyperparameters import (
    Hyperparameter,
    Values,
    require_fraction,
    require_not_negative,
    require_number,
)
from purenn.optim._rule import DECOUPLED, Rule, like, optimizer
from purenn.optim._tensor_list import V, toward
from purenn.optim._transformation import GradientTransformation, require_state
from purenn.tree import container, replace
from purenn.tree import map as tree_map


@container
class SophiaState:
    """State of `sophia`.

    Attributes:
        count: number of steps done, an int64 scalar.
        mean: running mean of the gradient, a tree like the parameters.
        curvature: running mean of the estimates of the Hessian's diagonal.
    """

    count: Tensor
    mean: Any
    curvature: Any


def sophia(
    learning_rate: Hyperparameter,
    *,
    momentum: Hyperparameter = 0.96,
    scale: Hyperparameter = 0.01,
    eps: Hyperparameter = 1e-12,
    weight_decay: Hyperparameter = 0.2,
    maximize: bool = False,
) -> GradientTransformation:
    """Steps in proportion to the gradient over the curvature, each element's at most the learning rate.

    The curvature is what `observe_curvature` has put into the state: every ten steps or so, estimate the Hessian's
    diagonal by `hutchinson_diagonal` or `gauss_newton_bartlett`. Where nothing has been observed, and where the
    curvature is negative, the step is the sign of the running mean.

    Args:
        learning_rate: the largest step of an element; as other numbers here a float, a tensor without dimensions (which
            may be differentiated) or a schedule.
        momentum: how much of the running mean of the gradient is kept. Default: 0.96.
        scale: what the curvature is multiplied by, so that between a tenth and a half of the elements are not clipped
            (usual are 0.01 for `hutchinson_diagonal` and 0.05 for `gauss_newton_bartlett`). Default: 0.01.
        eps: the smallest curvature that is divided by. Default: 1e-12.
        weight_decay: the parameters shrink by this times the learning rate. Default: 0.2.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a momentum outside [0, 1), or a negative number.

    Source:
        Liu, Li, Hall, Liang, Ma: Sophia, a Scalable Stochastic Second-order Optimizer for Language Model Pre-training,
        2023, algorithm 3.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda w: (torch.tensor([1.0, 100.0]) * w.square()).sum() / 2
        >>> optimizer, w = pn.optim.sophia(1.0, momentum=0.0, scale=1.0, weight_decay=0.0), torch.tensor([0.5, 0.5])
        >>> curvature = pn.optim.hutchinson_diagonal(loss)(pn.random.key(0), w)
        >>> state = pn.optim.observe_curvature(optimizer.init(w), curvature, decay=0.0)
        >>> optimizer.step(w, pn.grad(loss)(w), state)[0]
        tensor([0., 0.])
    """
    require_fraction("sophia", momentum=momentum)
    require_not_negative("sophia", learning_rate=learning_rate, scale=scale, weight_decay=weight_decay)
    require_number("sophia", eps=eps)
    if isinstance(eps, (int, float)) and not eps > 0:
        raise ArgumentError(f"sophia: eps must be a positive number, got {eps!r}.")

    def direction(g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        mean, curvature = toward(slots[0], g, 1 - values["momentum"]), slots[1]
        return (mean / (curvature * values["scale"]).clamp(values["eps"])).clamp(-1, 1), (mean, curvature)

    return optimizer(
        Rule(
            name="sophia",
            state=SophiaState,
            slots=("mean", "curvature"),
            begin=lambda w, _: (like(w), like(w)),
            direction=direction,
            hyperparameters={
                "rate": learning_rate,
                "momentum": momentum,
                "scale": scale,
                "eps": eps,
                "weight_decay": weight_decay,
            },
            decay=DECOUPLED,
            maximize=maximize,
        )
    )


def observe_curvature(state: SophiaState, estimate: Any, *, decay: float | Tensor = 0.99) -> SophiaState:
    """The state of `sophia` with another estimate of the Hessian's diagonal taken into the running mean.

    Args:
        state: the state.
        estimate: a tree like the gradients.
        decay: how much of the running mean is kept, a number or a tensor without dimensions. Default: 0.99.

    Raises:
        ArgumentError: a decay outside [0, 1), or the state of something else.
        StructureError: the estimate has another structure than the parameters.
    """
    require_fraction("observe_curvature", decay=decay)
    require_state("observe_curvature", SophiaState, state)

    def mixed(old: Tensor, new: Tensor) -> Tensor:
        return (old * decay + new * (1 - decay)).to(old.dtype)

    return replace(state, curvature=tree_map(mixed, state.curvature, estimate))
