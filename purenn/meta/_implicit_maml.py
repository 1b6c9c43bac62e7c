"""Adapting with a meta-gradient that does not look into the inner loop: implicit MAML."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.meta._implicit import implicit
from purenn.optim import GradientTransformation
from purenn.transforms import fori_loop, grad
from purenn.tree import combine, leaves, partition
from purenn.tree import map as tree_map

M = TypeVar("M")


def implicit_inner_loop(
    loss: Callable[..., Tensor],
    optimizer: GradientTransformation,
    steps: int,
    *,
    strength: float | Tensor = 1.0,
    solver: str = "cg",
    iterations: int = 5,
    tolerance: float | None = 0.0,
    damping: float = 0.0,
) -> Callable[..., Any]:
    """Adapt parameters by regularised training, with derivatives by the implicit function theorem.

    The adapted parameters minimise ``loss(p, *task) + strength / 2 * |p - params|^2`` over the trained leaves ``p``.
    Their derivatives follow from that alone, so memory and time of a meta-gradient do not grow with the number of inner
    steps, and the inner optimiser may be any. They are right as far as the inner loop has converged. Tensors that
    `loss` closes over are constants: what is differentiated, or differs from task to task, belongs into `task`.

    Args:
        loss: ``loss(params, *task)``, a scalar.
        optimizer: of the inner loop, as `pn.optim.sgd`.
        steps: the number of inner steps.
        strength: of the regulariser, a number or a tensor without dimensions, which can be meta-learned. Default: 1.
        solver: of the linear system of the meta-gradient, see `pn.implicit`. Default: "cg".
        iterations: its steps. Default: 5.
        tolerance: its tolerance; None for that of `pn.implicit`. Default: 0, which makes all `iterations`.
        damping: this multiple of the identity is added to its matrix. Default: 0.

    Returns:
        ``adapt(params, *task) -> adapted params``, differentiable.

    Raises:
        ArgumentError: a negative number of steps, or an option that does not exist.

    Source:
        Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, 2019, algorithm 2.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] - x).square()
        >>> adapt = pn.meta.implicit_inner_loop(loss, pn.optim.sgd(0.3), 20, strength=2.0)
        >>> p = {"w": torch.tensor(0.0)}
        >>> adapt(p, torch.tensor(1.0)), pn.grad(lambda p: adapt(p, torch.tensor(1.0))["w"])(p)
        ({'w': tensor(0.5000)}, {'w': tensor(0.5000)})
    """
    if steps < 0:
        raise ArgumentError(f"implicit_inner_loop: steps must not be negative, got {steps}.")

    def objective(trained: Any, params: Any, weight: float | Tensor, *task: Any) -> Tensor:
        moves = tree_map(lambda new, old: (new - old).square().sum(), trained, partition(params)[0])
        distance = torch.stack(leaves(moves)).sum()
        return loss(combine(trained, partition(params)[1]), *task) + weight * distance / 2

    def solve(params: Any, weight: float | Tensor, *task: Any) -> Any:
        def step(number: Tensor, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            trained, state = carry
            grads = grad(objective)(trained, params, weight, *task)
            return optimizer.step(trained, grads, state)

        trained = partition(params)[0]
        return fori_loop(0, steps, step, (trained, optimizer.init(trained)))[0]

    solved = implicit(
        solve, stationary=objective, solver=solver, iterations=iterations, tolerance=tolerance, damping=damping
    )

    def adapt(params: M, *task: Any) -> M:
        return combine(solved(params, strength, *task), partition(params)[1])

    return adapt


def implicit_maml(
    loss: Callable[..., Tensor], optimizer: GradientTransformation, steps: int, **options: Any
) -> Callable[..., Tensor]:
    """The loss on a task's query data after an `implicit_inner_loop` on its support data (iMAML).

    Args:
        loss: ``loss(params, *data)``, a scalar.
        optimizer: of the inner loop, as `pn.optim.sgd`.
        steps: inner steps.
        **options: of `implicit_inner_loop`.

    Returns:
        ``task_loss(params, support, query)`` for `meta.grad`, where both are tuples of data.

    Source:
        Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, 2019, algorithm 1.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] - x).square()
        >>> meta_gradient = pn.meta.grad(pn.meta.implicit_maml(loss, pn.optim.sgd(0.3), 20, strength=2.0))
        >>> support, query = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
        >>> meta_gradient({"w": torch.tensor(0.0)}, (support,), (query,))
        {'w': tensor(-1.7500)}
    """
    adapt = implicit_inner_loop(loss, optimizer, steps, **options)
    return lambda params, support, query: loss(adapt(params, *support), *query)
