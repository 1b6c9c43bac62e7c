"""Stochastic gradient descent."""

from typing import Any

from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._transformation import GradientTransformation, zeros_like
from purenn.tree import container
from purenn.tree import map as tree_map


@container
class SgdState:
    """State of `sgd`.

    Attributes:
        velocity: a tree like the parameters, None without momentum.
    """

    velocity: Any = None


def sgd(learning_rate: float | Tensor, *, momentum: float = 0.0, nesterov: bool = False) -> GradientTransformation:
    """``v = momentum v + g``, ``w = w - learning_rate v``; the same numbers as `torch.optim.SGD`.

    Args:
        learning_rate: the step size.
        momentum: the share of the last velocity that is kept. Default: 0.
        nesterov: whether to step along ``g + momentum v``. Default: False.

    Raises:
        ArgumentError: a negative momentum, or `nesterov` without momentum.
    """
    if momentum < 0:
        raise ArgumentError(f"sgd: momentum must not be negative, got {momentum}.")
    if nesterov and not momentum:
        raise ArgumentError("sgd: nesterov=True needs a momentum above 0.")

    def init(params: Any) -> SgdState:
        return SgdState(zeros_like(params) if momentum else None)

    def update(grads: Any, state: SgdState, params: Any) -> tuple[Any, SgdState]:
        if not momentum:
            return tree_map(lambda g: -learning_rate * g, grads), state
        velocity = tree_map(lambda v, g: momentum * v + g, state.velocity, grads)
        direction = tree_map(lambda g, v: g + momentum * v, grads, velocity) if nesterov else velocity
        return tree_map(lambda d: -learning_rate * d, direction), SgdState(velocity)

    return GradientTransformation(init, update)
