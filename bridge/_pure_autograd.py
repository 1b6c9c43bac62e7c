"""Autograd functions without ``setup_context``, which torch's transformations refuse.

Such a function stores what its backward needs in `ctx` during its forward. Here the forward runs with a `ctx` that
records, and everything recorded becomes an output of a function of the new form, which calls the old backward.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from bridge._pure_questions import running
from bridge._pure_replaced import Replacement, running_paths
from purenn.errors import GradientError


class _Context:
    """What an old function takes for its `ctx`."""

    def __init__(self, count: int) -> None:
        self.needs_input_grad = (True,) * count
        self.saved_tensors: tuple = ()
        self.materialize_grads = True

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Forward mode is not supported."""

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize_grads = value

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.not_differentiable = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        raise GradientError("it writes into its inputs")


@attrs.define(eq=False)
class _Record:
    """What is the same however often the function is transformed.

    Attributes:
        attributes: what the forward has stored in `ctx`; tensors as a `_Place`.
        outputs: how many outputs the old function has; None for one that is no tuple.
        not_differentiable: which of them have no gradient.
    """

    attributes: dict[str, Any] = attrs.Factory(dict)
    outputs: int | None = None
    not_differentiable: tuple[int, ...] = ()


@attrs.frozen
class _Place:
    """A tensor as a position among all tensors that are saved."""

    position: int


def _forward(old: type, record: _Record, *args: Any) -> tuple:
    ctx = _Context(len(args))
    result = old.forward(ctx, *args)
    outputs = tuple([_other(y, args) for y in (result if isinstance(result, tuple) else (result,))])
    record.outputs = len(outputs) if isinstance(result, tuple) else None
    flags = {id(tensor) for tensor in getattr(ctx, "not_differentiable", ())}
    record.not_differentiable = tuple(n for n, output in enumerate(outputs) if id(output) in flags)
    saved = [*args, *outputs]
    positions = {id(tensor): n for n, tensor in enumerate(saved) if isinstance(tensor, Tensor)}

    def placed(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in positions:
                positions[id(value)] = len(saved)
                saved.append(value)
            return _Place(positions[id(value)])
        return type(value)(map(placed, value)) if type(value) in (tuple, list) else value

    record.attributes = {name: placed(value) for name, value in vars(ctx).items() if name != "not_differentiable"}
    return tuple(saved[len(args) :])


def _other(output: Any, args: tuple) -> Any:
    # An input that is returned as it is must not be saved for the backward as well.
    is_input = isinstance(output, Tensor) and any(output is value for value in args)
    return output.view_as(output) if is_input else output


def _restored(record: _Record, tensors: Sequence[Any]) -> _Context:
    def found(value: Any) -> Any:
        if isinstance(value, _Place):
            return tensors[value.position]
        return type(value)(map(found, value)) if type(value) in (tuple, list) else value

    ctx = _Context(0)
    vars(ctx).update({name: found(value) for name, value in record.attributes.items()})
    return ctx


@functools.cache
def _renewed(old: type) -> Any:
    class Renewed(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(record: _Record, *args: Any) -> Any:
            return _forward(old, record, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
            ctx.record, *args = inputs
            count = ctx.record.outputs or 1
            ctx.mark_non_differentiable(*output[count:], *(output[n] for n in ctx.record.not_differentiable))
            values = (*args, *output)
            ctx.others = [None if isinstance(value, Tensor) else value for value in values]
            ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)))
            ctx.is_tensor = [isinstance(value, Tensor) for value in values]

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple:
            saved = iter(ctx.saved_tensors)
            values = [next(saved) if here else other for here, other in zip(ctx.is_tensor, ctx.others, strict=True)]
            inner = _restored(ctx.record, values)
            result = old.backward(inner, *gradients[: ctx.record.outputs or 1])
            return None, *(result if isinstance(result, tuple) else (result,))

    Renewed.__name__ = Renewed.__qualname__ = old.__name__
    return Renewed


def _make(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            function, _, *inputs = args
            return function(*inputs)
        is_old = cls.setup_context is Function.setup_context
        if not is_old or not torch._C._are_functorch_transforms_active():
            return original(cls, *args, **kwargs)
        if cls is BackwardHookFunction:
            raise GradientError(
                f"{running(running_paths())} has a backward hook, which torch's transformations cannot run. Remove it, "
                f"or take the gradient by pn.grad outside of pn.vmap."
            )
        record = _Record()
        try:
            outputs = original(_renewed(cls), record, *args, **kwargs)
        except (RuntimeError, TypeError, GradientError) as error:
            raise GradientError(
                f"{running(running_paths())}: the autograd.Function {cls.__name__} has no setup_context, and no "
                f"derivative rule could be made of its forward and backward: {error}. Write its forward without ctx, "
                f"and a staticmethod setup_context."
            ) from error
        return outputs[0] if record.outputs is None else outputs[: record.outputs]

    return apply


def _kept(original: Callable[..., Any]) -> Callable[..., Any]:
    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    return generator


#: What lets functions of the older form run in transformations.
APPLY = Replacement("torch.autograd.function.Function", "apply", _make, always=True)
#: Checkpointed activations are kept: where they would be computed again, the module has no tensors any more.
CHECKPOINTS = tuple(
    # The latter is what torch 2.15 itself calls.
    Replacement("torch.utils.checkpoint", f"_checkpoint_without_reentrant_{name}", _kept, always=True)
    for name in ("generator", "generator_impl")
)
