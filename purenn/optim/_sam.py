"""Sharpness-aware minimization: the gradient is taken where the loss nearby is highest."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from purenn.optim._hyperparameters import require_not_negative
from purenn.optim._simple import global_norm
from purenn.optim._transformation import GradientTransformation
from purenn.tree import map as tree_map

T = TypeVar("T")


class SharpnessAware(NamedTuple):
    """An optimiser made by `sam`, whose step takes two gradients.

    Attributes:
        init: ``init(params) -> state``, that of the optimiser inside.
        step: ``step(gradient, params, state) -> (params, state)`` with ``gradient(params) -> grads``.
    """

    init: Callable[[Any], Any]
    step: Callable[[Callable[[Any], Any], Any, Any], tuple[Any, Any]]


def sam(optimizer: GradientTransformation, *, radius: float | Tensor = 0.05, adaptive: bool = False) -> SharpnessAware:
    """Sharpness-aware minimization around an optimiser.

    Args:
        optimizer: what makes the step.
        radius: how far away the gradient is taken, a number or a tensor without dimensions. Default: 0.05.
        adaptive: whether to measure the distance of each element in proportion to its size. Default: False.

    Raises:
        ArgumentError: a negative radius.

    Source:
        Foret et al.: Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, algorithm 1. Kwon et
        al.: ASAM, 2021 (adaptive).

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda params, x: (params["w"] * x).square()
        >>> params, x = {"w": torch.tensor(1.0)}, torch.tensor(1.0)
        >>> optimizer = pn.optim.sam(pn.optim.sgd(0.1))
        >>> state = optimizer.init(params)
        >>> params, state = optimizer.step(lambda p: pn.grad(loss)(p, x), params, state)
        >>> params
        {'w': tensor(0.7900)}
    """
    require_not_negative("sam", radius=radius)

    def step(gradient: Callable[[Any], Any], params: Any, state: Any) -> tuple[Any, Any]:
        return optimizer.step(params, gradient(nearby(params, gradient(params))), state)

    def nearby(params: T, grads: Any) -> T:
        scaled = tree_map(lambda g, w: g * w.abs(), grads, params) if adaptive else grads
        size = global_norm(scaled)
        # No direction leads up from where the gradient is zero.
        factor = torch.where(size == 0, 0.0, radius / torch.where(size == 0, 1.0, size))

        def moved(w: Tensor, g: Tensor) -> Tensor:
            direction = g * w.abs() if adaptive else g
            return (w + direction * factor.to(w.device)).to(w.dtype)

        return tree_map(moved, params, scaled)

    return SharpnessAware(optimizer.init, step)
