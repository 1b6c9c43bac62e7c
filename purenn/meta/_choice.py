"""Which way of differentiating many tasks suits a task loss."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optree
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from purenn._modes import is_traced
from purenn.meta._entries import entry
from purenn.random import strict
from purenn.transforms._leaves import tensors_in
from purenn.transforms._nested import is_below_transformations

How = Literal["vmap", "sum", "loop"]

_log = logging.getLogger("purenn.meta")


class Choice(NamedTuple):
    """A way of differentiating many tasks.

    Attributes:
        how: "vmap", "sum" or "loop".
        reason: why, in words.
    """

    how: How
    reason: str


def choose(task_loss: Callable[..., Any], params: Any, *tasks: Any) -> Choice:
    """What ``meta.grad(task_loss, how="auto")`` does for some arguments, and why.

    Convolutions whose weights differ from task to task become grouped convolutions in "vmap" and "sum", which are slow
    on the CPU and need memory for all tasks at once: there tasks are taken one by one. To find convolutions the task
    loss is run once, on the first task. Everything else goes by "sum" in eager, which has the fewest operations, and by
    "vmap" where a graph is traced or another transformation is around.

    Args:
        task_loss: ``task_loss(params, *task)``.
        params: the parameters.
        *tasks: trees of tensors with a leading axis for the tasks.

    Returns:
        The way and the reason.

    Example:
        >>> import torch, purenn as pn
        >>> task_loss = lambda p, x: (p * x).square().mean()
        >>> pn.meta.choose(task_loss, torch.ones(3), torch.ones(5, 3)).how
        'sum'
    """
    if not is_below_transformations():
        return Choice("vmap", "another transformation is around")
    data = tensors_in(tasks)
    if len(data[0]) == 1:
        return Choice("loop", "there is one task")
    if all(tensor.is_cpu for tensor in data):
        count = _convolutions(task_loss, params, tasks)
        if count:
            return Choice("loop", f"a task runs {count} convolutions on the CPU, where grouped ones are slow")
    if is_traced():
        return Choice("vmap", "the tasks are traced into one graph")
    return Choice("sum", "the task loss has no convolutions on the CPU")


class Chooser:
    """`choose` for one task loss, which remembers what it chose for arguments of one kind."""

    def __init__(self, task_loss: Callable[..., Any]) -> None:
        self._task_loss = task_loss
        self._known: dict[Any, Choice] = {}

    def __call__(self, params: Any, *tasks: Any) -> Choice:
        """The choice for some arguments."""
        if torch.compiler.is_dynamo_compiling():  # where nothing can be remembered or said
            return choose(self._task_loss, params, *tasks)
        leaves, spec = optree.tree_flatten((params, tasks))  # pyright: ignore[reportArgumentType]
        kinds = tuple([(x.shape, x.device) if isinstance(x, Tensor) else None for x in leaves])
        key = spec, kinds, is_traced(), is_below_transformations()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = choose(self._task_loss, params, *tasks)
            _log.info("meta.grad: how='auto' takes %r: %s.", found.how, found.reason)
        return found


@functools.cache
def _functions() -> frozenset[Any]:
    names = [f"conv{transposed}{n}d" for n in (1, 2, 3) for transposed in ("", "_transpose")]
    return frozenset([getattr(space, name) for name in names for space in (F, torch)] + [torch.convolution])


class _Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += func in _functions()
        return func(*args, **(kwargs or {}))


def _convolutions(task_loss: Callable[..., Any], params: Any, tasks: tuple[Any, ...]) -> int:
    first = entry(tasks, 0)
    with strict(enabled=False), torch.no_grad(), _Counting() as seen:
        task_loss(params, *first)
    return seen.count
