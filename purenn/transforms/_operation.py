"""What loops and branches have in common as operations of a compiled graph.

An operation runs compiled programs that it finds by name (see `Program`). Its derivatives and its batched form are the
same operation with other programs, made by differentiating or batching the graphs of the first ones, so loops and
branches can be transformed to any order.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, library
from torch._C._functorch import TransformType, get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

Tensors = Sequence[Tensor]
Flat = Callable[..., Tensors]

LIBRARY = library.Library("purenn", "DEF")


class Plan(Protocol):
    """One call of an operation: which programs, and how its tensors are divided."""

    @property
    def kept(self) -> tuple[int, ...]:
        """Which of the results the gradient needs."""
        ...

    def call(self, tensors: Tensors) -> Tensors:
        """Call the operation."""
        ...

    def pull(self, tensors: Tensors, kept: Tensors, wanted: list[int], cotangents: list[Any]) -> list[Any]:
        """A gradient for every tensor, None for those that are not wanted."""
        ...

    def push(self, tensors: Tensors, tangents: Sequence[Tensor | None]) -> list[Any]:
        """A tangent for every result, None for those that have none."""
        ...

    def batched(self, size: int, in_dims: tuple, tensors: Tensors) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The results for batched tensors, and where their batch axis is."""
        ...


class Operation(torch.autograd.Function):
    """A plan applied to tensors."""

    @staticmethod
    def forward(plan: Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the operation below all transformations."""
        return tuple(plan.call([tensor.contiguous() for tensor in tensors]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keep the arguments, and the results that the plan asks for."""
        ctx.plan, *tensors = inputs
        ctx.given = len(tensors)
        ctx.save_for_backward(*tensors, *at(output, ctx.plan.kept))
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        places = set(differentiable(output))
        ctx.mark_non_differentiable(*[result for n, result in enumerate(output) if n not in places])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple:
        """The plan's gradients."""
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.given], saved[ctx.given :]
        wanted = [n for n in differentiable(tensors) if ctx.needs_input_grad[n + 1]]
        return (None, *ctx.plan.pull(tensors, kept, wanted, list(cotangents)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        """The plan's tangents."""
        with primals(ctx.saved_tensors[: ctx.given]) as tensors:
            return tuple(ctx.plan.push(tensors, list(tangents[1:])))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, plan: Plan, *tensors: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The plan's batched form."""
        return plan.batched(info.batch_size, in_dims[1:], tensors)


@contextlib.contextmanager
def primals(saved: Tensors) -> Iterator[list[Tensor]]:
    """Within the jvp of an autograd.Function: what it has saved, without the tangents of its own level.

    torch switches forward mode off there, that of transformations further out as well, whose tangents would be lost.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [forward_ad.unpack_dual(tensor).primal for tensor in saved]


def differentiable(tensors: Tensors) -> list[int]:
    """The places of tensors whose dtype has derivatives."""
    return [n for n, tensor in enumerate(tensors) if tensor.is_floating_point() or tensor.is_complex()]


def at(items: Sequence[Any], places: Sequence[int]) -> list[Any]:
    """The items at some places."""
    return [items[place] for place in places]


def placed(count: int, places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """`count` items: the values at their places, None elsewhere."""
    full: list[Any] = [None] * count
    for place, value in zip(places, values, strict=True):
        full[place] = value
    return full


def moved(tensors: Tensors, dims: Sequence[int | None], to: int = 0) -> list[Tensor]:
    """Tensors with their batch axis, if they have one, at one place."""
    return [x if dim is None else x.movedim(dim, to) for x, dim in zip(tensors, dims, strict=True)]


def batched(tensors: Tensors, dims: Sequence[int | None], size: int) -> list[Tensor]:
    """Tensors that all have a batch axis, in front."""
    return [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims, strict=True)
    ]


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros at no level of transformation."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def tangents_at(tensors: Tensors, places: Sequence[int], tangents: Sequence[Tensor | None]) -> list[Tensor]:
    """The tangents at some places, zeros where there is none."""
    given = at(tangents, places)
    return [zeros_like(tensors[n]) if tangent is None else tangent for n, tangent in zip(places, given, strict=True)]


def pull(fn: Flat, tensors: Tensors, places: Sequence[int], cotangents: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients for the tensors at some places, given cotangents of the results, None for some."""
    return value_and_pull(fn, tensors, places, cotangents)[1]


def value_and_pull(
    fn: Flat, tensors: Tensors, places: Sequence[int], cotangents: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """The results, and gradients as of `pull`."""
    given = [(n, cotangent) for n, cotangent in enumerate(cotangents) if cotangent is not None]

    def asked(*values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        results = list(fn(*_filled(tensors, places, values)))
        return [results[n] for n, _ in given], results

    # Not plain autograd on detached leaves: the graph of this gradient is differentiated again for the next order.
    values = at(tensors, places)
    if not values or not given:
        return list(fn(*tensors)), [torch.zeros_like(value) for value in values]
    traced: Any = torch.func.vjp(asked, *values, has_aux=True)
    return traced[2], list(traced[1]([cotangent for _, cotangent in given]))


def push(fn: Flat, tensors: Tensors, places: Sequence[int], tangents: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    """The results, and the tangents of the differentiable ones."""

    def moving(*values: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        results = fn(*_filled(tensors, places, values))
        return tuple(at(results, differentiable(results))), list(results)

    result: Any = torch.func.jvp(moving, tuple(at(tensors, places)), tuple(tangents), has_aux=True)
    return result[2], list(result[1])


def shared_summed(many: Flat, own: Sequence[bool]) -> Flat:
    """Gradients for many examples, where what has not one for each example gets the sum of all."""

    def run(*tensors: Tensor) -> list[Tensor]:
        return [x if each else x.sum(0) for x, each in zip(many(*tensors), own, strict=True)]

    return run


def _filled(tensors: Tensors, places: Sequence[int], values: Tensors) -> list[Tensor]:
    full = list(tensors)
    for place, value in zip(places, values, strict=True):
        full[place] = value
    return full


def may_be_differentiated(tensors: Tensors) -> bool:
    """Whether a gradient may be asked for: by a transformation around, or outside of the jitted function."""
    if torch.is_grad_enabled() and any(map(requires_grad, tensors)):
        return True
    return any(level.key() == TransformType.Grad for level in get_interpreter_stack() or ())


def requires_grad(tensor: Tensor) -> bool:
    """Whether plain autograd wants the gradient of a tensor, below all transformations."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor.requires_grad


def independent(results: Tensors, given: Tensors) -> list[Tensor]:
    """Results that share storage neither with what was given nor with each other: an operation's must not.

    A compiled program may return an argument as it is, or one tensor for two equal results.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in given}
    own = []
    for result in results:
        pointer = result.untyped_storage().data_ptr()
        own.append(result.clone() if pointer in seen else result)
        seen.add(pointer)
    return own


def empty(result: Tensor, *length: int) -> Tensor:
    """A new tensor for a result, or for a stack of them."""
    return torch.empty((*length, *result.shape), dtype=result.dtype, device=result.device)
