"""Adam: steps scaled by running moments of the gradient."""

from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._transformation import GradientTransformation, zeros_like
from purenn.tree import container
from purenn.tree import map as tree_map


@container
class AdamState:
    """State of `adam`.

    Attributes:
        count: number of steps done, an int64 scalar.
        mean: running mean of the gradient, a tree like the parameters.
        square: running mean of its square.
    """

    count: Tensor
    mean: Any
    square: Any


def adam(
    learning_rate: float | Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> GradientTransformation:
    """Adam with bias correction; the same numbers as `torch.optim.Adam`.

    Args:
        learning_rate: the step size.
        betas: how much of the running mean and of the running square is kept. Default: (0.9, 0.999).
        eps: added to the root of the square. Default: 1e-8.

    Raises:
        ArgumentError: a beta outside [0, 1), or a negative eps.

    Source:
        Kingma, Ba: Adam, a Method for Stochastic Optimization, 2015, algorithm 1.
    """
    first, second = betas
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ArgumentError(f"adam: both betas must be at least 0 and below 1, got {betas}.")
    if eps < 0:
        raise ArgumentError(f"adam: eps must not be negative, got {eps}.")

    def init(params: Any) -> AdamState:
        zeros = zeros_like(params)
        return AdamState(torch.zeros((), dtype=torch.int64), zeros, tree_map(torch.clone, zeros))

    def update(grads: Any, state: AdamState, params: Any) -> tuple[Any, AdamState]:
        count = state.count + 1
        mean = tree_map(lambda m, g: torch.lerp(m, g, 1 - first), state.mean, grads)
        square = tree_map(lambda s, g: second * s + (1 - second) * g * g, state.square, grads)

        def step(m: Tensor, s: Tensor) -> Tensor:
            n = count.to(m.device, m.dtype)
            return -learning_rate * (m / (1 - first**n)) / ((s / (1 - second**n)).sqrt() + eps)

        return tree_map(step, mean, square), AdamState(count, mean, square)

    return GradientTransformation(init, update)
