"""Losses of one task after adapting to it: MAML and its relatives.

Each function here makes a ``task_loss(params, support, query)`` for `meta.grad`: `support` and `query` are tuples of
further arguments of the loss, for adapting and for judging.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.meta._choice import Chooser
from purenn.meta._entries import count_of, entry
from purenn.meta._inner_loop import inner_loop
from purenn.optim import GradientTransformation
from purenn.optim._transformation import EmptyState
from purenn.transforms import vmap
from purenn.transforms._lean import alone
from purenn.transforms._leaves import detached
from purenn.transforms._nested import at_once, stacked_tasks, value_as_before
from purenn.tree import container, partition
from purenn.tree import map as tree_map

TaskLoss = Callable[..., Tensor]


def maml(loss: Callable[..., Tensor], optimizer: GradientTransformation, steps: int, **options: Any) -> TaskLoss:
    """The loss on a task's query data after some steps on its support data.

    With ``first_order=True`` it is first-order MAML; with ``select="head.**"``, say, ANIL, which adapts a part of the
    model only; with ``truncate=2`` derivatives go through the last two steps. With ``unroll="scan"`` the loss is called
    once for both kinds of data where it is known what it does (see `inner_loop`) and they have the same shapes.

    Args:
        loss: ``loss(params, *data)``, a scalar.
        optimizer: of the inner loop, as `pn.optim.sgd`.
        steps: inner steps.
        **options: of `inner_loop`.

    Returns:
        ``task_loss(params, support, query)``, where both are tuples of data.

    Source:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017, algorithm 1. Raghu et al.: Rapid Learning or Feature
        Reuse?, 2020 (ANIL).

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] - x).square()
        >>> meta_gradient = pn.meta.grad(pn.meta.maml(loss, pn.optim.sgd(0.25), steps=1))
        >>> support, query = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
        >>> meta_gradient({"w": torch.tensor(0.0)}, (support,), (query,))
        {'w': tensor(-1.7500)}
    """
    adapt, of_query = inner_loop(loss, optimizer, steps, **options), _of_all_tasks(loss)
    return lambda params, support, query: of_query(adapt(params, *support)[0], *query)


@container
class MetaSGD:
    """Parameters together with learned step sizes.

    Attributes:
        params: the parameters that adapting starts from.
        rates: a tree like the trained leaves of `params`, one step size for each of their numbers or for each leaf.
    """

    params: Any
    rates: Any

    @classmethod
    def init(cls, params: Any, rate: float = 0.01, *, per: str = "number") -> "MetaSGD":
        """Parameters with equal step sizes.

        Args:
            params: the parameters.
            rate: all step sizes at the start. Default: 0.01.
            per: "number" for a step size for each number, as in the paper; "leaf" for one for each leaf. Default:
                "number".

        Raises:
            ArgumentError: another `per`.
        """
        if per not in ("number", "leaf"):
            raise ArgumentError(f"MetaSGD.init: per must be 'number' or 'leaf', got {per!r}.")
        shaped = (lambda w: w) if per == "number" else (lambda w: w.new_zeros(()))
        trained = partition(params)[0]
        return cls(params, tree_map(lambda w: torch.full_like(shaped(w.detach()), rate), trained))


def meta_sgd(loss: Callable[..., Tensor], steps: int = 1, **options: Any) -> TaskLoss:
    """As `maml`, by gradient descent with the learned step sizes of a `MetaSGD`.

    Args:
        loss: ``loss(params, *data)`` of the parameters alone.
        steps: inner steps. Default: 1, as in the paper.
        **options: of `inner_loop`.

    Returns:
        ``task_loss(meta_params, support, query)`` of a `MetaSGD`.

    Source:
        Li, Zhou, Chen, Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017, algorithm 1.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] - x).square()
        >>> p = pn.meta.MetaSGD.init({"w": torch.tensor(0.0)}, rate=0.25)
        >>> pn.meta.grad(pn.meta.meta_sgd(loss))(p, (torch.ones(1),), (torch.ones(1),))
        MetaSGD(params={'w': f32[]}, rates={'w': f32[]})
    """

    def task_loss(meta: MetaSGD, support: tuple, query: tuple) -> Tensor:
        adapt = inner_loop(loss, _with_rates(meta.rates), steps, **options)
        return _of_all_tasks(loss)(adapt(meta.params, *support)[0], *query)

    return task_loss


def _with_rates(rates: Any) -> GradientTransformation:
    def update(grads: Any, state: EmptyState, params: Any) -> tuple[Any, EmptyState]:
        return tree_map(lambda g, rate: -rate * g, grads, rates), state

    return GradientTransformation(lambda params: EmptyState(), update)


def cavia(
    loss: Callable[..., Tensor], context: Any, optimizer: GradientTransformation, steps: int, **options: Any
) -> TaskLoss:
    """As `maml`, but adapting context parameters, extra inputs of the model, and learning the model itself.

    Args:
        loss: ``loss(params, context, *data)``, a scalar.
        context: the context that each task starts from, a tree of tensors; usually zeros.
        optimizer: of the inner loop.
        steps: inner steps.
        **options: of `inner_loop`.

    Returns:
        ``task_loss(params, support, query)``.

    Source:
        Zintgraf et al.: Fast Context Adaptation via Meta-Learning, 2019, algorithm 1.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, context, x, y: (p["w"] * x + context - y).square().mean()
        >>> task_loss = pn.meta.cavia(loss, torch.tensor(0.0), pn.optim.sgd(0.5), steps=1)
        >>> task = torch.ones(3), torch.tensor([2.0, 3.0, 4.0])
        >>> float(task_loss({"w": torch.tensor(1.0)}, task, task))  # the mean is met, the spread is left
        0.6666666865348816
    """
    adapt = inner_loop(lambda context, params, *data: loss(params, context, *data), optimizer, steps, **options)
    of_query = _of_all_tasks(loss)
    return lambda params, support, query: of_query(params, adapt(context, params, *support)[0], *query)


def reptile(
    loss: Callable[..., Tensor], optimizer: GradientTransformation, steps: int, **options: Any
) -> Callable[..., Any]:
    """Reptile's direction: from the adapted parameters back to those at the start, the mean over tasks.

    Used as a gradient, an outer `pn.optim.sgd` with learning rate ``e`` moves the parameters a share ``e`` of the way
    to the mean of the adapted ones. Nothing is differentiated through the inner loop.

    Args:
        loss: ``loss(params, *data)``, a scalar.
        optimizer: of the inner loop.
        steps: inner steps.
        **options: of `inner_loop`.

    Returns:
        A function of ``(params, *tasks)``, where every tensor in `tasks` has a leading axis for the tasks. It returns a
        tree like a gradient.

    Source:
        Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, algorithm 2.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] - x).square()
        >>> pn.meta.reptile(loss, pn.optim.sgd(0.5), steps=1)({"w": torch.tensor(0.0)}, torch.tensor([1.0, 3.0]))
        {'w': tensor(-2.)}
    """
    adapt = inner_loop(loss, optimizer, steps, **options)

    def direction(params: Any, *task: Any) -> Any:
        return tree_map(torch.sub, partition(params)[0], partition(adapt(params, *task)[0])[0])

    chooser = Chooser(lambda params, *task: adapt(params, *task)[1])

    def directions(params: Any, *tasks: Any) -> Any:
        count = count_of("meta.reptile", tasks)
        params = detached(params)
        if chooser(params, *tasks).how == "loop":
            each = [direction(params, *entry(tasks, number)) for number in range(count)]
            return tree_map(lambda *parts: torch.stack(parts).mean(0), *each)
        with alone(), stacked_tasks():
            return tree_map(lambda d: d.mean(0), vmap(lambda task: direction(params, *task))(tasks))

    return directions


def _of_all_tasks(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def computed(*args: Any) -> Tensor:
        value = value_as_before(loss, *args)
        if value is not None:
            return value
        with at_once():
            return loss(*args)

    return computed
