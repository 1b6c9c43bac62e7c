"""The gradient of the mean of many tasks' losses."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.meta._choice import Chooser
from purenn.meta._entries import count_of, entry
from purenn.transforms import value_and_grad as value_and_grad_of
from purenn.transforms import vmap
from purenn.transforms._batch import taken_apart
from purenn.transforms._closures import Closures
from purenn.transforms._grad import solved
from purenn.transforms._leaves import Argument, Problem, problem, scalar_output, split_aux, tensors_in
from purenn.transforms._nested import stacked_tasks
from purenn.transforms._vmap import of_batch
from purenn.tree import map as tree_map

# ``share(params, task, count)``: what one of so many tasks adds to the mean loss, and its auxiliary output.
Share = Callable[[Any, tuple, int], tuple[Tensor, Any]]


class Found(NamedTuple):
    """What some tasks give.

    Attributes:
        value: what they add to the mean loss.
        gradients: what they add to its gradients.
        aux: their auxiliary outputs, stacked; None if there are none.
    """

    value: Tensor
    gradients: Any
    aux: Any


def grad(
    task_loss: Callable[..., Any],
    how: Literal["auto", "vmap", "sum", "loop"] = "auto",
    *,
    chunk: int | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """The gradient of the mean loss of many tasks: the meta-gradient.

    The task loss usually adapts the parameters first, by an `inner_loop` or by `pn.grad` in its own code. All ways give
    the same numbers; they differ in time and memory:

    - "vmap" makes one batched gradient of all tasks' and takes the mean after. Best under `pn.jit`.
    - "sum" gives each task its own copy of the parameters and differentiates the sum of the losses, by ordinary
      operations on stacked tensors. Best in eager for small models, and under `pn.jit` for a scanned `inner_loop`.
    - "loop" takes the tasks one by one. Best for convolutions on the CPU, and least memory.
    - "auto" is "loop" for convolutions on the CPU, otherwise "sum" in eager and "vmap" under `pn.jit` and within other
      transformations. `meta.choose` says which and why; so does the logger ``purenn.meta``.

    Args:
        task_loss: ``task_loss(params, *task)`` of one task returns a scalar, with `has_aux` ``(scalar, auxiliary)``.
        how: "auto", "vmap", "sum" or "loop". Default: "auto".
        chunk: how many tasks "vmap" and "sum" take at a time. Default: all.
        has_aux: whether there is an auxiliary output, a tree of tensors. Default: False.

    Returns:
        A function of ``(params, *tasks)``, where every tensor in `tasks` has a leading axis for the tasks. It returns
        the gradients; with `has_aux` ``(gradients, auxiliary)``, the latter stacked along a leading axis.

    Raises:
        ArgumentError: an unknown `how`, or a chunk below 1.
        BatchingError: when called: the leading axes differ or are empty, or there is no task.
        GradientError: when called: nothing to differentiate, or a task's value is no real scalar.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] - x).square()
        >>> adapt = pn.meta.inner_loop(loss, pn.optim.sgd(0.25), steps=1)
        >>> meta_gradient = pn.meta.grad(lambda p, x: loss(adapt(p, x)[0], x))
        >>> meta_gradient({"w": torch.tensor(0.0)}, torch.tensor([1.0, 2.0, 3.0]))
        {'w': tensor(-1.)}
    """
    both = value_and_grad(task_loss, how, chunk=chunk, has_aux=has_aux)

    @functools.wraps(task_loss)
    def gradient(params: Any, *tasks: Any) -> Any:
        found, gradients = both(params, *tasks)
        return (gradients, found[1]) if has_aux else gradients

    return gradient


def value_and_grad(
    task_loss: Callable[..., Any],
    how: Literal["auto", "vmap", "sum", "loop"] = "auto",
    *,
    chunk: int | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """As `grad`, but returning ``(mean loss, gradients)``, with `has_aux` ``((mean loss, auxiliary), gradients)``."""
    if how != "auto" and how not in _WAYS:
        raise ArgumentError(f"meta.grad: how must be 'auto', 'vmap', 'sum' or 'loop', got {how!r}.")
    if chunk is not None and chunk < 1:
        raise ArgumentError(f"meta.grad: chunk must be at least 1, got {chunk}.")
    chooser = Chooser(task_loss)

    def share(params: Any, task: tuple, count: int) -> tuple[Tensor, Any]:
        value, aux = split_aux("meta.grad", task_loss(params, *task), has_aux)
        return scalar_output("meta.grad", value) / count, aux

    ways = {name: make(share) for name, make in _WAYS.items()}

    @functools.wraps(task_loss)
    def value_and_gradient(params: Any, *tasks: Any) -> Any:
        count = count_of("meta.grad", tasks)
        way = chooser(params, *tasks).how if how == "auto" else how
        size = 1 if way == "loop" else chunk or count
        parts = [ways[way](params, part, count) for part in _parts(tasks, count, size)]
        total = _added([Found(part.value, part.gradients, None) for part in parts])
        if not has_aux:
            return total.value, total.gradients
        aux: Any = parts[0].aux if len(parts) == 1 else tree_map(lambda *x: torch.cat(x), *[p.aux for p in parts])
        return (total.value, aux), total.gradients

    return value_and_gradient


# Each of the ways makes of a `Share` a function of the parameters, of some tasks, and of the number of all.


def _by_vmap(share: Share) -> Callable[[Any, tuple, int], Found]:
    of_one = value_and_grad_of(share, has_aux=True)

    def found(params: Any, tasks: tuple, count: int) -> Found:
        (values, aux), gradients = vmap(lambda task: of_one(params, task, count))(tasks)
        return Found(values.sum(), tree_map(lambda g: g.sum(0), gradients), aux)

    return found


def _by_sum(share: Share) -> Callable[[Any, tuple, int], Found]:
    closures = Closures()

    def total(argument: Argument, values: Sequence[Tensor], tasks: tuple, count: int) -> tuple[Tensor, Any]:
        size = len(tensors_in(tasks)[0])
        batch = taken_apart(0, ([value.expand(size, *value.shape) for value in values], tasks), {})
        with stacked_tasks():
            losses, aux = of_batch(lambda copy, task: share(argument.rebuilt(copy), task, count), batch)
        return losses.sum(), aux

    def found(params: Any, tasks: tuple, count: int) -> Found:
        call = _OfValues(*problem("value_and_grad", total, (params, tasks, count), {}, 0))
        value, aux, gradients = solved("value_and_grad", call, True, closures)
        return Found(value, gradients, aux)

    return found


class _OfValues(Problem):
    # The function gets the parameters as they are taken apart.
    def call(self, values: Sequence[Tensor]) -> Any:
        return self.fn(self.arguments[0], values, *self.args[1:])


def _by_loop(share: Share) -> Callable[[Any, tuple, int], Found]:
    of_one = value_and_grad_of(share, has_aux=True)

    def found(params: Any, tasks: tuple, count: int) -> Found:
        (value, aux), gradients = of_one(params, entry(tasks, 0), count)
        return Found(value, gradients, tree_map(lambda x: x[None], aux))

    return found


_WAYS = {"vmap": _by_vmap, "sum": _by_sum, "loop": _by_loop}


def _added(parts: list[Found]) -> Found:
    return functools.reduce(lambda a, b: tree_map(torch.add, a, b), parts)


def _parts(tasks: tuple, count: int, size: int) -> Iterator[tuple]:
    if size >= count:
        yield tasks
        return
    for start in range(0, count, size):
        yield entry(tasks, slice(start, start + size))
