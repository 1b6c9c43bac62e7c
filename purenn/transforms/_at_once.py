"""Functions of many tasks at once: in the operations of ordinary tensors, and with their gradients in formulas.

Under a vmap over tasks whose parameters are all stacked, vmap makes a product and several views of every layer, and the
gradients that plain autograd records of them are made of twice as many. Here both are written out for stacked tensors.
Where a loss consists of these functions alone, its gradient is taken by the formulas, which record a smaller graph for
the next derivative. Where it does not, autograd takes it, of the same results.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _DisableFuncTorch
from torch._C._functorch import _add_batch_dim, _remove_batch_dim, is_batchedtensor, maybe_current_level
from torch.overrides import TorchFunctionMode

from purenn.transforms._cross_entropy import cross_entropies

# ``pull(cotangent) -> gradients`` by each of the inputs of a function; None where none is asked for.
Pull = Callable[[Any], Sequence[Any]]


class _Call(NamedTuple):
    """A call of one of the functions.

    Attributes:
        output: its result.
        version: of the result; it has been written into since if that has changed.
        places: for each input the place of its gradient; None if it does not depend on the leaves.
        pull: see `Pull`.
        is_value: whether the result is one number for each task, and `pull` takes None for cotangents of 1.
    """

    output: Tensor
    version: int
    places: list[int | None]
    pull: Pull
    is_value: bool


class AtOnce(TorchFunctionMode):
    """Within this context some functions of one task are computed of all tasks.

    Args:
        level: that of the vmap over the tasks.
        size: the number of tasks.
        leaves: the tensors of all tasks by which `gradients` will be asked for. Default: none.
    """

    def __init__(self, level: int, size: int, leaves: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self._level, self._size, self._count = level, size, len(leaves)
        self._places = {id(leaf): place for place, leaf in enumerate(leaves)}
        self._calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        function = _FUNCTIONS.get(func)
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

    def done(self, output: Tensor, inputs: Sequence[Tensor], pull: Pull, *, is_value: bool = False) -> Tensor:
        """The result of a function as that of one task; for the arguments see `_Call`."""
        if self._count and output.requires_grad:
            known, places, dtype = self._places, [], output.dtype
            for given in inputs:
                place = known.get(id(given)) if given.requires_grad else None
                # What requires grad and is not known may depend on the leaves in a way that only autograd knows.
                if (place is None and given.requires_grad) or given.dtype is not dtype or dtype.is_complex:
                    break
                places.append(place)
            else:
                known[id(output)] = self._count + len(self._calls)
                self._calls.append(_Call(output, output._version, places, pull, is_value))
        return _add_batch_dim(output, 0, self._level)

    def gradients(self, total: Tensor, *, recorded: bool) -> list[Tensor | None] | None:
        """The gradients of the sum of all tasks' values, None for leaves that it does not depend on.

        Args:
            total: the values of all tasks.
            recorded: whether the gradients can be differentiated.

        Returns:
            None where not all that leads from the leaves to the values is known.
        """
        last, count = self._places.get(id(total), -1), self._count
        if last < count:
            return None
        found: list[Tensor | None] = [None] * (last + 1)
        with _DisableFuncTorch(), torch.set_grad_enabled(recorded):
            for place in range(last, count - 1, -1):
                output, version, places, pull, is_value = self._calls[place - count]
                if output._version != version:
                    return None
                cotangent = found[place]
                if place == last:
                    cotangent = None if is_value else torch.ones_like(total)
                elif cotangent is None:
                    continue
                for below, gradient in zip(places, pull(cotangent), strict=True):
                    if below is not None:
                        before = found[below]
                        found[below] = gradient if before is None else before + gradient
        return found[:count]


def _linear(tasks: AtOnce, input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    given = tasks.of_all(input, weight) if bias is None else tasks.of_all(input, weight, bias)
    if given is None or not given[0].dim() == given[1].dim() == 3:
        return None
    rows, matrices = given[:2]
    turned = matrices.mT
    output = torch.bmm(rows, turned) if bias is None else torch.baddbmm(given[2].unsqueeze(1), rows, turned)

    def pull(g: Tensor) -> list[Tensor | None]:
        of_rows = torch.bmm(g, matrices) if rows.requires_grad else None
        of_matrices = torch.bmm(g.mT, rows) if matrices.requires_grad else None
        return [of_rows, of_matrices] if bias is None else [of_rows, of_matrices, g.sum(1)]

    return tasks.done(output, given, pull)


def _mse_loss(
    tasks: AtOnce, input: Any, target: Any, *args: Any, reduction: str = "mean", **options: Any
) -> Tensor | None:
    if args or reduction != "mean" or set(options.values()) - {None}:
        return None
    given = tasks.of_all(input, target)
    if given is None or not _has_numbers(given[0]) or not _are_alike(*given):
        return None
    errors, share = torch.sub(*given), _share(given[0])

    def pull(g: Tensor | None) -> list[Tensor | None]:
        gradient = errors * (2 * share if g is None else _beside(errors, g * (2 * share)))
        return [gradient, -gradient if given[1].requires_grad else None]

    return tasks.done(_mean_of_each(errors * errors), given, pull, is_value=True)


def _cross_entropy(tasks: AtOnce, input: Any, target: Any, **options: Any) -> Tensor | None:
    given = tasks.of_all(input, target) if options.get("reduction", "mean") == "mean" else None
    if given is None or given[0].dim() != 3:
        return None
    scores, classes = given
    value = cross_entropies(scores, classes, options)
    if value is None:
        return None

    def pull(g: Tensor | None) -> list[Tensor | None]:
        places = classes.clamp(0, scores.shape[-1] - 1).unsqueeze(-1)
        right = torch.zeros_like(scores).scatter_(-1, places, 1)
        counted = classes != options.get("ignore_index", -100)
        # The mean of no example is NaN, and its gradient zero.
        shares = counted / counted.sum(1, keepdim=True, dtype=scores.dtype).clamp(min=1)
        return [(scores.softmax(-1) - right) * (shares if g is None else shares * g.unsqueeze(1)).unsqueeze(-1)]

    return tasks.done(value, [scores], pull, is_value=True)


def _difference(tasks: AtOnce, *args: Any, **options: Any) -> Tensor | None:
    given = None if len(args) != 2 or options else tasks.of_all(*args)
    if given is None or not _are_alike(*given):
        return None
    return tasks.done(torch.sub(*given), given, lambda g: [g, -g if given[1].requires_grad else None])


def _power(tasks: AtOnce, *args: Any, **options: Any) -> Tensor | None:
    return _square(tasks, args[0], **options) if len(args) == 2 and type(args[1]) is int and args[1] == 2 else None


def _of_one(
    function: Callable[[Tensor], Tensor], gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[..., Tensor | None]:
    # Of a function of a single tensor, and ``gradient(cotangent, input, output)``.
    def computed(tasks: AtOnce, *args: Any, **options: Any) -> Tensor | None:
        given = tasks.of_all(*args) if len(args) == 1 and options in ({}, {"inplace": False}) else None
        if given is None or not _has_numbers(given[0]):
            return None
        (x,) = given
        output = function(x)
        return tasks.done(output, given, lambda g: [gradient(g, x, output)])

    return computed


def _are_alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype is y.dtype


def _has_numbers(x: Tensor) -> bool:
    # Whether a task has floating-point numbers along some axes.
    return x.dim() > 1 and x.numel() > 0 and x.is_floating_point()


def _share(x: Tensor) -> float:
    # What each of a task's numbers adds to its mean.
    return x.shape[0] / x.numel()


def _mean_of_each(x: Tensor) -> Tensor:
    axes = tuple(range(1, x.dim()))
    # The sum of half-precision numbers may be too large for one.
    return x.mean(axes) if x.dtype is torch.float16 else x.sum(axes) * _share(x)


def _beside(x: Tensor, numbers: Tensor) -> Tensor:
    # One number for each task, with axes of length one.
    return numbers.reshape(-1, *[1] * (x.dim() - 1))


_aten = torch.ops.aten
# Torch's own gradient has one by the result, of zeros.
_relu = _of_one(torch.relu, lambda g, x, y: _aten.threshold_backward.default(g, y.detach(), 0))
_tanh = _of_one(torch.tanh, lambda g, x, y: _aten.tanh_backward.default(g, y))
_sigmoid = _of_one(torch.sigmoid, lambda g, x, y: _aten.sigmoid_backward.default(g, y))
_gelu = _of_one(F.gelu, lambda g, x, y: _aten.gelu_backward.default(g, x))
_square = _of_one(lambda x: x * x, lambda g, x, y: x * (g + g))
_mean = _of_one(_mean_of_each, lambda g, x, y: _beside(x, g * _share(x)).expand_as(x))

_FUNCTIONS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.gelu: _gelu,
    F.mse_loss: _mse_loss,
    F.cross_entropy: _cross_entropy,
    **dict.fromkeys((torch.sub, Tensor.sub), _difference),
    **dict.fromkeys((torch.square, Tensor.square), _square),
    **dict.fromkeys((torch.pow, Tensor.pow, Tensor.__pow__), _power),
    **dict.fromkeys((torch.mean, Tensor.mean), _mean),
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh), _tanh),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid), _sigmoid),
}
