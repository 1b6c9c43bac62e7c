"""Functions of one task that are computed of all tasks, in the operations of ordinary tensors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import _add_batch_dim, _remove_batch_dim, is_batchedtensor

from purenn.transforms._at_once_rules import (
    GELU,
    RELU,
    SIGMOID,
    SQUARE,
    TANH,
    CrossEntropies,
    Difference,
    Kind,
    Linear,
    Mean,
    OfNumbers,
    Rule,
    SquaredErrors,
    share_of,
)
from purenn.transforms._cross_entropy import are_understood


class Tasks(NamedTuple):
    """The tasks of a vmap.

    Attributes:
        level: that of the vmap.
        size: the number of tasks.
    """

    level: int
    size: int

    def of_all(self, *tensors: Any) -> list[Tensor] | None:
        """The tensors of all tasks; None if one of them is the same for all, or no tensor."""
        level, size, found = self.level, self.size, []
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not is_batchedtensor(tensor):
                return None
            found.append(_remove_batch_dim(tensor, level, size, 0))
        return found

    def of_each(self, x: Tensor) -> Tensor:
        """The tensor of one task, of that of all."""
        return _add_batch_dim(x, 0, self.level)


class Plan(NamedTuple):
    """How a call of a function is computed of all tasks.

    Attributes:
        rule: what computes it, and its derivatives.
        given: the arguments of all tasks.
        numbers: what the rule keeps that is no tensor.
    """

    rule: Rule
    given: Sequence[Tensor]
    numbers: Sequence[Any] = ()


Planner = Callable[..., Plan | None]


def _linear(tasks: Tasks, input: Any, weight: Any, bias: Any = None) -> Plan | None:
    given = tasks.of_all(input, weight) if bias is None else tasks.of_all(input, weight, bias)
    if given is None or not _are_layers(*given):
        return None
    return Plan(Linear(len(given) > 2, given[0].requires_grad, given[1].requires_grad), given)


def _mse_loss(
    tasks: Tasks, input: Any, target: Any, *args: Any, reduction: str = "mean", **options: Any
) -> Plan | None:
    if args or reduction != "mean" or set(options.values()) - {None}:
        return None
    given = tasks.of_all(input, target)
    if given is None or not _has_numbers(given[0]) or not _are_alike(*given):
        return None
    x, y = given
    return Plan(SquaredErrors(x.dim(), y.requires_grad), given, (share_of(x.shape),))


def _cross_entropy(tasks: Tasks, input: Any, target: Any, **options: Any) -> Plan | None:
    given = tasks.of_all(input, target) if options.get("reduction", "mean") == "mean" else None
    if given is None or given[0].dim() != 3 or not are_understood(given[0], given[1], options):
        return None
    return Plan(CrossEntropies(options.get("ignore_index", -100)), given)


def _difference(tasks: Tasks, *args: Any, **options: Any) -> Plan | None:
    given = None if len(args) != 2 or options else tasks.of_all(*args)
    return Plan(Difference(given[1].requires_grad), given) if given is not None and _are_alike(*given) else None


def _mean(tasks: Tasks, *args: Any, **options: Any) -> Plan | None:
    given = tasks.of_all(*args) if len(args) == 1 and not options else None
    if given is None or not _has_numbers(given[0]):
        return None
    (x,) = given
    return Plan(Mean(x.dim()), given, (x.shape, share_of(x.shape)))


def _power(tasks: Tasks, *args: Any, **options: Any) -> Plan | None:
    is_square = len(args) == 2 and type(args[1]) is int and args[1] == 2
    return _square(tasks, args[0], **options) if is_square else None


def _of_numbers(kind: Kind) -> Planner:
    def planned(tasks: Tasks, *args: Any, **options: Any) -> Plan | None:
        given = tasks.of_all(*args) if len(args) == 1 and options in ({}, {"inplace": False}) else None
        return Plan(OfNumbers(kind), given) if given is not None and _has_numbers(given[0]) else None

    return planned


def as_strided(tasks: Tasks, input: Any, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor | None:
    """As torch's, of one task, where all tasks have one memory; None where each has its own.

    Each would get the mean of their gradients otherwise.
    """
    given = tasks.of_all(input)
    if given is None or given[0].stride(0):
        return None
    (x,) = given
    order = [0, *sorted(range(1, x.dim()), key=x.stride, reverse=True)]
    copies = x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.dim())])
    if copies.stride()[1:] != x.stride()[1:]:
        raise RuntimeError("Calling Tensor.as_strided is not supported for parameters with gaps in their memory")
    start = None if storage_offset is None else storage_offset - x.storage_offset()
    return tasks.of_each(copies).as_strided(size, stride, start)


def _are_layers(rows: Tensor, matrices: Tensor, *biases: Tensor) -> bool:
    # Anything else may be an error, and torch says of what.
    if not rows.dim() == matrices.dim() == 3 or rows.size(2) != matrices.size(2):
        return False
    return rows.dtype is matrices.dtype and (not biases or biases[0].shape == matrices.shape[:2])


def _are_alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype is y.dtype


def _has_numbers(x: Tensor) -> bool:
    # Whether a task has floating-point numbers along some axes.
    return x.dim() > 1 and x.numel() > 0 and x.is_floating_point()


_square = _of_numbers(SQUARE)

#: Those that are wrong otherwise.
AS_STRIDED = frozenset((torch.as_strided, Tensor.as_strided, torch.as_strided_copy))
PLANNERS: dict[Any, Planner] = {
    F.linear: _linear,
    F.gelu: _of_numbers(GELU),
    F.mse_loss: _mse_loss,
    F.cross_entropy: _cross_entropy,
    **dict.fromkeys((torch.sub, Tensor.sub), _difference),
    **dict.fromkeys((torch.square, Tensor.square), _square),
    **dict.fromkeys((torch.pow, Tensor.pow, Tensor.__pow__), _power),
    **dict.fromkeys((torch.mean, Tensor.mean), _mean),
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _of_numbers(RELU)),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh), _of_numbers(TANH)),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid), _of_numbers(SIGMOID)),
}
