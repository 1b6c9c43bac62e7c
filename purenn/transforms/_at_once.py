"""Functions of many tasks at once: in the operations of ordinary tensors, and with their derivatives in formulas.

Under a vmap over tasks whose parameters are all stacked, vmap makes a product and several views of every layer, and the
gradients that plain autograd records of them are made of twice as many. Here both are written out for stacked tensors.
Where a loss consists of these functions alone, its gradient is taken by formulas, see `_at_once_loss`. Where it does
anything else, autograd takes its gradient, of the same results.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _DisableFuncTorch
from torch._C._functorch import _add_batch_dim, _remove_batch_dim, is_batchedtensor, maybe_current_level
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode

from purenn._modes import is_autocast
from purenn.transforms._at_once_formulas import Call, formulas_of
from purenn.transforms._at_once_loss import Gradients, Loss
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
    Some,
    SquaredErrors,
    mean_of_each,
    share_of,
)
from purenn.transforms._cross_entropy import cross_entropies


class AtOnce(TorchFunctionMode):
    """Within this context some functions of one task are computed of all tasks.

    Args:
        level: that of the vmap over the tasks.
        size: the number of tasks.
        leaves: the tensors of all tasks by which `gradients` will be asked for. Default: none.
        is_traced: whether a compiler sees all operations, which finds better ones itself. Default: False.
    """

    def __init__(self, level: int, size: int, leaves: Sequence[Tensor] = (), *, is_traced: bool = False) -> None:
        super().__init__()
        self._functions, leaves = (_NEEDED, ()) if is_traced else (_FUNCTIONS, leaves)
        self._level, self._size, self._leaves = level, size, leaves
        # The leaves and the results of the calls; kept, so that no other tensor gets the identity of one of them.
        self._values = list(leaves)
        self._places = {id(leaf): place for place, leaf in enumerate(leaves)}
        self._versions = [leaf._version for leaf in leaves]
        # For each call what it keeps, the versions of that, and how much all calls have kept after it.
        self._calls: list[Call] = []
        self._kept: list[Any] = []
        self._versions_kept: list[int | None] = []
        self._ends: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        function = self._functions.get(func)
        if function is not None and maybe_current_level() == self._level:
            with _DisableFuncTorch():
                found = function(self, *args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))

    def of_all(self, *tensors: Any) -> list[Tensor] | None:
        """The tensors of all tasks; None if one of them is the same for all, or no tensor."""
        level, size, found = self._level, self._size, []
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not is_batchedtensor(tensor):
                return None
            found.append(_remove_batch_dim(tensor, level, size, 0))
        return found

    def of_each(self, x: Tensor) -> Tensor:
        """The tensor of one task, of that of all."""
        return _add_batch_dim(x, 0, self._level)

    def done(self, output: Tensor, inputs: Sequence[Tensor], rule: Rule, *kept: Any) -> Tensor:
        """The result of a function as that of one task; for the arguments see `Call` and `Rule`."""
        if self._leaves and output.requires_grad:
            known, places, dtype = self._places, [], output.dtype
            for given in inputs:
                place = None
                if given.requires_grad:
                    # What is not known may depend on the leaves in a way that only autograd knows.
                    place = known.get(id(given))
                    if place is None or place in places or given._version != self._versions[place]:
                        break
                if given.dtype is not dtype or dtype.is_complex:
                    break
                places.append(place)
            else:
                known[id(output)] = len(self._values)
                self._values.append(output)
                self._versions.append(output._version)
                self._calls.append(Call(type(rule), rule, tuple(places)))
                self._kept += kept
                self._versions_kept += [x._version if isinstance(x, Tensor) else None for x in kept]
                self._ends.append(len(self._kept))
        return self.of_each(output)

    def gradients(self, total: Tensor, *, recorded: bool, rate: float | None = None) -> Sequence[Some] | None:
        """The gradients of the sum of all tasks' values, None for leaves that it does not depend on.

        Args:
            total: the values of all tasks.
            recorded: whether the gradients can be differentiated.
            rate: if given, not the gradients are returned, but the leaves less this multiple of them. Default: None.

        Returns:
            None where not all that leads from the leaves to the values is known.
        """
        place, count = self._places.get(id(total), -1), len(self._leaves)
        if place < count or total._version != self._versions[place]:
            return None
        calls, end = self._calls[: place + 1 - count], self._ends[place - count]
        formulas = formulas_of(tuple(calls), count, rate is not None)
        scale = 1.0 if rate is None else -rate
        top = scale if calls[-1].rule.takes_number else torch.full_like(total, scale)
        loss = Loss(self._leaves, formulas, self._kept[:end], self._versions_kept[:end], top)
        if loss.is_written():
            return None
        with temporarily_clear_interpreter_stack():
            with torch.no_grad():
                found, bent = loss.gradients()
            if not recorded:
                return found
            # Apart, since what belongs to the graph of the gradients must not hold them.
            return Gradients.apply(loss, bent, found, *self._leaves)  # pyright: ignore[reportAttributeAccessIssue]


def _linear(tasks: AtOnce, input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    given = tasks.of_all(input, weight) if bias is None else tasks.of_all(input, weight, bias)
    if given is None or not _are_layers(*given) or is_autocast(given[0]):
        return None
    rows, matrices, *biases = given
    turned = matrices.mT
    output = torch.baddbmm(biases[0].unsqueeze(1), rows, turned) if biases else torch.bmm(rows, turned)
    rule = Linear(bool(biases), rows.requires_grad, matrices.requires_grad)
    return tasks.done(output, given, rule, rows, matrices)


def _mse_loss(
    tasks: AtOnce, input: Any, target: Any, *args: Any, reduction: str = "mean", **options: Any
) -> Tensor | None:
    if args or reduction != "mean" or set(options.values()) - {None}:
        return None
    given = tasks.of_all(input, target)
    if given is None or not _has_numbers(given[0]) or not _are_alike(*given):
        return None
    errors = torch.sub(*given)
    dim, share = errors.dim(), share_of(errors.shape)
    rule = SquaredErrors(dim, given[1].requires_grad)
    return tasks.done(mean_of_each(errors * errors, dim), given, rule, errors, share)


def _cross_entropy(tasks: AtOnce, input: Any, target: Any, **options: Any) -> Tensor | None:
    given = tasks.of_all(input, target) if options.get("reduction", "mean") == "mean" else None
    if given is None or given[0].dim() != 3:
        return None
    scores, classes = given
    value = cross_entropies(scores, classes, options)
    if value is None:
        return None
    counted = classes != options.get("ignore_index", -100)
    # The mean of no example is NaN, and its gradient zero.
    shares = counted / counted.sum(1, keepdim=True, dtype=scores.dtype).clamp(min=1)
    return tasks.done(value, [scores], CrossEntropies(), scores, classes, shares)


def _difference(tasks: AtOnce, *args: Any, **options: Any) -> Tensor | None:
    given = None if len(args) != 2 or options else tasks.of_all(*args)
    if given is None or not _are_alike(*given):
        return None
    return tasks.done(torch.sub(*given), given, Difference(given[1].requires_grad))


def _mean(tasks: AtOnce, *args: Any, **options: Any) -> Tensor | None:
    given = tasks.of_all(*args) if len(args) == 1 and not options else None
    if given is None or not _has_numbers(given[0]):
        return None
    (x,), dim = given, given[0].dim()
    return tasks.done(mean_of_each(x, dim), given, Mean(dim), x.shape, share_of(x.shape))


def _power(tasks: AtOnce, *args: Any, **options: Any) -> Tensor | None:
    return _square(tasks, args[0], **options) if len(args) == 2 and type(args[1]) is int and args[1] == 2 else None


def _as_strided(tasks: AtOnce, input: Any, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor | None:
    # Where all tasks have one memory, as at the first step, each would get the mean of their gradients.
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


def _of_numbers(kind: Kind) -> Callable[..., Tensor | None]:
    def computed(tasks: AtOnce, *args: Any, **options: Any) -> Tensor | None:
        given = tasks.of_all(*args) if len(args) == 1 and options in ({}, {"inplace": False}) else None
        if given is None or not _has_numbers(given[0]):
            return None
        output = kind.function(given[0])
        return tasks.done(output, given, OfNumbers(kind), output if kind.by_result else given[0])

    return computed


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

# Those that are wrong otherwise.
_NEEDED: dict[Any, Callable[..., Tensor | None]] = dict.fromkeys(
    (torch.as_strided, Tensor.as_strided, torch.as_strided_copy), _as_strided
)
_FUNCTIONS: dict[Any, Callable[..., Tensor | None]] = {
    **_NEEDED,
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
