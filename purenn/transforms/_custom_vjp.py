"""A reverse-mode rule of one's own, in the shape that JAX gave it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import optree
import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from purenn.errors import GradientError
from purenn.transforms._custom import Frame, Rule, apart, batched_alike, is_differentiated, outline
from purenn.transforms._custom_op import refuse_forward, reverse_tensors
from purenn.transforms._own_rule import ruled
from purenn.tree._holes import HOLE

P = ParamSpec("P")
R = TypeVar("R")


class custom_vjp(Rule[P, R]):  # noqa: N801 - a decorator
    """A function with a reverse-mode rule of its own.

    ``f.defvjp(forward, backward)`` sets it: ``forward(*args) -> (output, residuals)`` runs in the place of the function
    when a gradient is wanted, ``backward(residuals, cotangent)`` returns the gradients of all positional arguments as a
    tuple, None for an argument without one. Both may use the function itself. Arguments, outputs and residuals are
    trees; leaves that are no tensors are constants, and so is what the functions close over. The rule is a part of what
    `pn.jit` compiles: of the bodies of loops and branches, and of functions that are differentiated from outside. Under
    vmap it is one for each example.

    Raises:
        GradientError: when called: no rule is set, the rule returns what does not fit the arguments, forward mode is
            asked for, or torch.compile (unlike `pn.jit`) would lose the rule.

    Example:
        >>> import torch, purenn as pn
        >>> @pn.custom_vjp
        ... def clipped(x):
        ...     return x.clone()
        >>> clipped.defvjp(lambda x: (x.clone(), None), lambda _, gradient: (gradient.clamp(-1, 1),))
        >>> pn.grad(lambda x: 5 * clipped(x))(torch.tensor(2.0))
        tensor(1.)
    """

    kind = "custom_vjp"

    def __init__(self, fn: Callable[P, R]) -> None:
        super().__init__(fn)
        self._forward: Callable[..., Any] | None = None
        self._backward: Callable[..., Any] | None = None

    def defvjp(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """Set the rule."""
        self._forward, self._backward = forward, backward

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._forward is None or self._backward is None:
            raise GradientError(
                f"custom_vjp: '{self.name}' has no rule: call {self.name}.defvjp(forward, backward) first."
            )
        frame, tensors = self.frame(args, kwargs)
        if self.needs_no_rule(tensors, reverse=True):
            return self._fn(*args, **kwargs)
        if self.is_traced(tensors):
            rule = partial(self.within, self.backward_parts, frame)
            value = partial(self.within, self.forward_parts, frame)
            results = reverse_tensors(self.title, value, rule, tensors)
        elif not (is_dynamo_compiling() or is_differentiated(tensors)):
            fn: Callable[..., Any] = self._fn
            with torch.no_grad():
                outputs = self.outputs(frame, fn(*args), tensors)
            results = ruled(self.title, outputs, tensors)
        else:
            function = _Reverse if is_dynamo_compiling() else _ReverseOnly
            count, *everything = function.apply(self, frame, *tensors)
            results = everything[: int(count)]
        return cast(R, optree.tree_unflatten(frame.made.out_spec, list(results)))

    def forward_parts(self, frame: Frame, tensors: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and residual tensors; the rest of the residuals stays in the frame."""
        assert self._forward is not None
        pair = self._forward(*frame.args(tensors))
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise GradientError(
                f"custom_vjp: the forward rule of '{self.name}' must return (output, residuals), got a "
                f"{type(pair).__name__}."
            )
        outputs = self.outputs(frame, pair[0], tensors)
        kept, frame.made.rest_spec = optree.tree_flatten(pair[1])
        frame.made.rest = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in kept]
        return outputs, apart([leaf for leaf in kept if isinstance(leaf, Tensor)], tensors)

    def backward_parts(self, frame: Frame, kept: Any, cotangents: Any, tensors: Any) -> list[Tensor | None]:
        """The gradient of every tensor among the arguments."""
        assert self._backward is not None
        rest = iter(kept)
        residuals = optree.tree_unflatten(
            frame.made.rest_spec, [next(rest) if leaf is _TENSOR else leaf for leaf in frame.made.rest]
        )
        gradients = self._backward(residuals, optree.tree_unflatten(frame.made.out_spec, list(cotangents)))
        args = frame.args(tensors)
        if not isinstance(gradients, tuple) or len(gradients) != len(args):
            got = f"{len(gradients)} of them" if isinstance(gradients, tuple) else f"a {type(gradients).__name__}"
            raise GradientError(
                f"custom_vjp: the backward rule of '{self.name}' must return a tuple with a gradient (or None) for "
                f"each of the {len(args)} arguments, got {got}."
            )
        flat: list[Tensor | None] = []
        for position, (argument, gradient) in enumerate(zip(args, gradients, strict=True)):
            flat += _gradient_leaves(self.name, position, argument, gradient)
        return flat


def _gradient_leaves(name: str, position: int, argument: Any, gradient: Any) -> list[Tensor | None]:
    wanted = optree.tree_leaves(argument)
    places = [n for n, leaf in enumerate(wanted) if isinstance(leaf, Tensor)]
    if gradient is None:
        return [None] * len(places)
    got = optree.tree_leaves(gradient, is_leaf=lambda node: node is HOLE)
    fits = len(got) == len(wanted) and all(
        got[n] is HOLE or (isinstance(got[n], Tensor) and got[n].shape == wanted[n].shape) for n in places
    )
    if not fits:
        raise GradientError(
            f"custom_vjp: the backward rule of '{name}' must return for argument {position} a gradient that looks "
            f"like it, {outline(argument)}, got {outline(gradient)}."
        )
    return [None if got[n] is HOLE else got[n] for n in places]


_TENSOR = object()


class _Reverse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rule: custom_vjp, frame: Frame, *tensors: Tensor) -> tuple:
        outputs, kept = rule.forward_parts(frame, tensors)
        # What is shared by all examples would get the sum of their cotangents, for a rule that is for one example.
        results = batched_alike([*outputs, *kept], tensors)
        count = len(outputs)
        return (count, *ruled(rule.title, results[:count], tensors), *results[count:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.rule, ctx.frame, *tensors = inputs
        ctx.count, *results = output
        ctx.tensors = len(tensors)
        ctx.save_for_backward(*tensors, *results[ctx.count :])
        ctx.set_materialize_grads(False)
        ctx.shapes = [(result.shape, result.dtype, result.device) for result in results[: ctx.count]]

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple:
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.tensors], saved[ctx.tensors :]
        _, *results = cotangents  # the first output is the number of the others
        of_outputs, of_kept = results[: ctx.count], results[ctx.count :]
        gradients: list[Tensor | None] = [None] * ctx.tensors
        if any(cotangent is not None for cotangent in of_outputs):
            filled = [
                torch.zeros(shape, dtype=dtype, device=device) if cotangent is None else cotangent
                for cotangent, (shape, dtype, device) in zip(of_outputs, ctx.shapes, strict=True)
            ]
            gradients = ctx.rule.backward_parts(ctx.frame, kept, filled, tensors)
        if any(cotangent is not None for cotangent in of_kept):
            # A derivative of the backward rule: it has used residuals, which are functions of the arguments.
            gradients = _through_residuals(ctx.rule, ctx.frame, tensors, of_kept, gradients)
        return (None, None, *batched_alike(gradients, [*tensors, *kept, *results]))


class _ReverseOnly(_Reverse):
    # By itself, since torch.compile takes no function that defines jvp.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _Reverse.setup_context(ctx, inputs, output)
        # Under vmap torch looks for these before it calls jvp.
        ctx.save_for_forward(*inputs[2:], *output[1 + ctx.count :])

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        refuse_forward(ctx.rule.title)


def _through_residuals(
    rule: custom_vjp, frame: Frame, tensors: Any, cotangents: Any, gradients: list[Tensor | None]
) -> list[Tensor | None]:
    places = [n for n, tensor in enumerate(tensors) if tensor.is_floating_point() or tensor.is_complex()]
    wanted = [n for n, cotangent in enumerate(cotangents) if cotangent is not None]

    def residuals(*values: Tensor) -> tuple[Tensor, ...]:
        filled = list(tensors)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        kept = rule.forward_parts(frame.again(), filled)[1]
        return tuple(kept[n] for n in wanted)

    pull = torch.func.vjp(residuals, *[tensors[place] for place in places])[1]
    for place, more in zip(places, pull(tuple(cotangents[n] for n in wanted)), strict=True):
        before = gradients[place]
        gradients[place] = more if before is None else before + more
    return gradients
