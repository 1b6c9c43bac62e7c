"""Routing by tiles as an operation that can be transformed.

Its value and first derivative are `sums_by_tiles` and `gradients_by_tiles`, on a GPU the kernels of `_routing_triton`
where they run; forward mode and second derivatives go by the folded form. For compilers both are operators that they
do not look into.

The arguments have one axis more than the formula: W is ``[models, o, i, d, k]`` and u is ``[models, n, i, k]``. To
batch over u is to make n longer, so that nothing is ever expanded; to batch over W is to add models. The gradient of W
is summed over the examples within each of a number of groups, which are what vmap made n longer by.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, library
from torch._C._functorch import peek_interpreter_stack

from purenn.ops._routing_forms import Options, sum_folded
from purenn.ops._routing_tiles import accumulated, gradients_by_tiles, sums_by_tiles
from purenn.ops._routing_triton import gradients_by_kernels, kernels_run, sums_by_kernels


def sum_by_tiles(W: Tensor, u: Tensor, options: Options) -> Tensor:
    """The last weighted sum, ``[*n, o, d]``: W is ``[o, i, d, k]``, u ``[*n, i, k]``."""
    call: Any = _Sums.apply
    if torch.compiler.is_dynamo_compiling():
        # What reads Python cannot read a Function with a forward mode, and the operator alone is not transformed.
        if _is_transformed():
            return sum_folded(W, u, options)
        call = torch.ops.purenn.routing_sums
    last, _ = call(W.unsqueeze(0), u.reshape(1, -1, *u.shape[-2:]), *options)
    return last.reshape(*u.shape[:-2], *last.shape[-2:])


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    return peek_interpreter_stack() is not None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(W: Tensor, u: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.purenn.routing_sums(W, u, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        W, u, *options = inputs
        ctx.options = Options(*options)
        ctx.save_for_backward(W, u, output[1])
        ctx.save_for_forward(W, u)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        W, u, sums = ctx.saved_tensors
        of_W, of_u = _Gradients.apply(W, u, sums, gradients[0], 1, *ctx.options)
        return of_W.squeeze(1), of_u, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        plain = torch.func.vmap(functools.partial(sum_folded, options=ctx.options))
        (moved,) = _push(lambda W, u: (plain(W, u),), ctx.saved_tensors[:2], tangents[:2])
        return moved, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        merged = _Merged.of(info.batch_size, in_dims[:2], args[:2])
        return merged.split(_Sums.apply(*merged.tensors, *args[2:]))


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(W: Tensor, u: Tensor, sums: Tensor, gradient: Tensor, groups: int, *options: Any) -> tuple:
        return torch.ops.purenn.routing_gradients(W, u, sums, gradient, groups, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        # The sums are what W and u make them: a derivative by W or u takes them along.
        W, u, _, gradient, groups, *options = inputs
        ctx.plain = _plain_gradients(groups, Options(*options))
        ctx.save_for_backward(W, u, gradient)
        ctx.save_for_forward(W, u, gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        _, pull, *_ = torch.func.vjp(ctx.plain, *ctx.saved_tensors)
        of_W, of_u, of_gradient = pull(gradients)
        return of_W, of_u, None, of_gradient, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        W, u, _, gradient = tangents[:4]
        return _push(ctx.plain, ctx.saved_tensors[:3], (W, u, gradient))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        merged = _Merged.of(info.batch_size, in_dims[:4], args[:4])
        groups, *options = args[4:]
        more = info.batch_size if merged.axis else 1
        return merged.split(_Gradients.apply(*merged.tensors, groups * more, *options))


class _Merged(NamedTuple):
    """W and other tensors whose batch axis has become part of the models (axis 0) or of the examples (axis 1)."""

    tensors: list[Tensor]
    axis: int
    size: int

    @classmethod
    def of(cls, size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> "_Merged":
        axis = 1 if dims[0] is None else 0
        merged = []
        for x, dim in zip(tensors, dims, strict=True):
            if dim is not None:
                merged.append(x.movedim(dim, axis).flatten(axis, axis + 1))
            elif merged or not axis:
                merged.append(x.unsqueeze(axis).expand(*x.shape[:axis], size, *x.shape[axis:]).flatten(axis, axis + 1))
            else:
                merged.append(x)
        return cls(merged, axis, size)

    def split(self, results: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Results with their batch axis, and where it is."""
        first, second = (x.unflatten(self.axis, (self.size, -1)) for x in results)
        return (first, second), (self.axis, self.axis)


def _push(function: Callable[..., tuple], primals: tuple, tangents: tuple) -> tuple:
    # By two pulls, because forward mode cannot be nested in the forward mode that may be running.
    results, pull, *_ = torch.func.vjp(function, *primals)
    _, pull_again, *_ = torch.func.vjp(pull, tuple(torch.zeros_like(x) for x in results))
    filled = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(primals, tangents, strict=True))
    return pull_again(filled)[0]


def _plain_gradients(groups: int, options: Options) -> Callable[..., tuple[Tensor, Tensor]]:
    """What `_Gradients` computes, in plain operations."""

    def one_group(W: Tensor, u: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.vjp(lambda W, u: sum_folded(W, u, options), W, u)[1](gradient)

    def one_model(W: Tensor, u: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        split = [x.unflatten(0, (groups, -1)) for x in (u, gradient)]
        of_W, of_u = torch.func.vmap(one_group, (None, 0, 0))(W, *split)
        return of_W, of_u.flatten(0, 1)

    return torch.func.vmap(one_model)


# The operators. What they return is contiguous, as compilers are told, and shares no storage.


def _run_sums(W: Tensor, u: Tensor, iterations: int, stop_gradient: bool, leaky: bool) -> tuple[Tensor, Tensor]:
    if kernels_run(W, u):
        sums = sums_by_kernels(W, u, iterations, leaky)
    else:
        sums = _stacked([sums_by_tiles(*model, iterations, leaky) for model in zip(W, u, strict=True)])
    return sums[:, :, -1].to(u.dtype).clone(memory_format=torch.contiguous_format), sums


def _run_gradients(
    W: Tensor,
    u: Tensor,
    sums: Tensor,
    gradient: Tensor,
    groups: int,
    iterations: int,
    stop_gradient: bool,
    leaky: bool,
) -> tuple[Tensor, Tensor]:
    if kernels_run(W, u):
        return gradients_by_kernels(W, u, sums, gradient, groups, stop_gradient, leaky)
    per_example = groups == u.shape[1] > 1
    of_W, of_u = [], []
    for model in range(len(W)):
        parts = [x[model].tensor_split(1 if per_example else groups) for x in (u, sums, gradient)]
        found = [
            gradients_by_tiles(W[model], *some, stop_gradient, leaky, per_example)
            for some in zip(parts[0], parts[1], parts[2], strict=True)
        ]
        of_W.append(found[0][0] if per_example else _stacked([of_W for of_W, _ in found]))
        of_u.append(torch.cat([of_u for _, of_u in found]))
    return _stacked(of_W), _stacked(of_u)


def _stacked(tensors: list[Tensor]) -> Tensor:
    # Not a copy of the only one.
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _fake_sums(W: Tensor, u: Tensor, iterations: int, stop_gradient: bool, leaky: bool) -> tuple[Tensor, Tensor]:
    sums = u.new_empty((*u.shape[:2], iterations, W.shape[1], W.shape[3]), dtype=accumulated(u.dtype))
    return u.new_empty((*u.shape[:2], *sums.shape[3:])), sums


def _fake_gradients(
    W: Tensor, u: Tensor, sums: Tensor, gradient: Tensor, groups: int, *options: Any
) -> tuple[Tensor, Tensor]:
    return W.new_empty((len(W), groups, *W.shape[1:])), u.new_empty(u.shape)


_OPTIONS = "int iterations, bool stop_gradient, bool leaky"
_LIBRARY = library.Library("purenn", "FRAGMENT")
_LIBRARY.define(f"routing_sums(Tensor W, Tensor u, {_OPTIONS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"routing_gradients(Tensor W, Tensor u, Tensor sums, Tensor gradient, int groups, {_OPTIONS}) -> (Tensor, Tensor)"
)
for _name, _run, _fake, _rules in (
    ("routing_sums", _run_sums, _fake_sums, _Sums),
    ("routing_gradients", _run_gradients, _fake_gradients, _Gradients),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    library.register_fake(f"purenn::{_name}", _fake, lib=_LIBRARY)
    library.register_autograd(f"purenn::{_name}", _rules.backward, setup_context=_rules.setup_context, lib=_LIBRARY)
