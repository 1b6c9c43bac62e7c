"""A forward-mode rule of one's own; reverse mode is its transpose."""

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

import optree
import torch
from torch import Tensor

from purenn.errors import GradientError
from purenn.transforms._custom import Frame, Rule, outline
from purenn.transforms._custom_op import forward_tensors
from purenn.transforms._operation import at, differentiable, placed, primals, pull
from purenn.transforms._own_rule import ruled

P = ParamSpec("P")
R = TypeVar("R")


class custom_jvp(Rule[P, R]):  # noqa: N801 - a decorator
    """A function with a forward-mode rule of its own; reverse mode is its transpose.

    ``f.defjvp(rule)`` sets it: ``rule(primals, tangents) -> (output, output tangent)``, both arguments tuples with an
    entry for each positional argument. The output's tangent must be linear in the tangents; what the functions close
    over is constant. The rule is a part of what `pn.jit` compiles: of the bodies of loops and branches, and of
    functions that are differentiated from outside. There, a rule that uses its own function serves three derivatives.

    Raises:
        GradientError: when called: no rule is set, the function returns what is no tensor, the rule does not return a
            pair of the output's structure and shapes, or torch.compile (unlike `pn.jit`) would lose it.

    Example:
        >>> import torch, purenn as pn
        >>> @pn.custom_jvp
        ... def log1pexp(x):
        ...     return torch.log1p(x.exp())
        >>> log1pexp.defjvp(lambda primals, tangents: (log1pexp(*primals), tangents[0] * primals[0].sigmoid()))
        >>> pn.grad(log1pexp)(torch.tensor(100.0))
        tensor(1.)
    """

    kind = "custom_jvp"

    def __init__(self, fn: Callable[P, R]) -> None:
        super().__init__(fn)
        self._rule: Callable[..., Any] | None = None

    def defjvp(self, rule: Callable[..., Any]) -> None:
        """Set the rule."""
        self._rule = rule

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._rule is None:
            raise GradientError(f"custom_jvp: '{self.name}' has no rule: call {self.name}.defjvp(rule) first.")
        frame, tensors = self.frame(args, kwargs)
        if self.needs_no_rule(tensors, reverse=False):
            return self._fn(*args, **kwargs)
        if self.is_traced(tensors):
            rule = partial(self.within, self.moved, frame)
            results = forward_tensors(self.title, partial(self.value, frame), rule, tensors)
        else:
            results = _Forward.apply(self, frame, *tensors)
        return cast(R, optree.tree_unflatten(frame.made.out_spec, list(results)))

    def value(self, frame: Frame, *tensors: Tensor) -> list[Tensor]:
        """The function's outputs."""
        fn: Callable[..., Any] = self._fn
        outputs = self.outputs(frame, fn(*frame.args(tensors)), tensors)
        frame.made.outputs = [(output.shape, output.dtype) for output in outputs]
        return outputs

    def moved(self, frame: Frame, tensors: Any, tangents: Any) -> list[Tensor]:
        """The tangents of the outputs that can have one, by the rule."""
        assert self._rule is not None
        pair = self._rule(frame.args(tensors), frame.args(tangents))
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise GradientError(
                f"custom_jvp: the rule of '{self.name}' must return (output, output tangent), got a "
                f"{type(pair).__name__}."
            )
        leaves, spec = optree.tree_flatten(pair[1])
        outputs = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in frame.made.outputs]
        places = differentiable(outputs)
        if spec != frame.made.out_spec or any(
            not isinstance(leaves[n], Tensor) or leaves[n].shape != outputs[n].shape for n in places
        ):
            like: Any = optree.tree_unflatten(frame.made.out_spec, outputs)
            raise GradientError(
                f"custom_jvp: the tangent that the rule of '{self.name}' returns must look like the output, "
                f"{outline(like)}, got {outline(pair[1])}."
            )
        return [leaves[n].to(outputs[n].dtype) for n in places]


class _Batched:
    # A rule for each example of a batch; the axes of the arguments are given, results have theirs in front.
    def __init__(self, rule: Any, dims: tuple[int | None, ...]) -> None:
        self.rule, self.dims, self.title = rule, dims, rule.title

    def value(self, frame: Frame, *tensors: Tensor) -> list[Tensor]:
        return torch.func.vmap(partial(self.rule.value, frame), self.dims)(*tensors)

    def moved(self, frame: Frame, tensors: Any, tangents: Any) -> list[Tensor]:
        apply = torch.func.vmap(partial(self.rule.moved, frame), (self.dims, self.dims))
        return apply(tuple(tensors), tuple(tangents))


class _Forward(torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, in_dims: tuple, rule: Any, frame: Frame, *tensors: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        results = _Forward.apply(_Batched(rule, in_dims[2:]), frame, *tensors)
        return results, (0,) * len(results)

    @staticmethod
    def forward(rule: custom_jvp, frame: Frame, *tensors: Tensor) -> tuple:
        return tuple(ruled(rule.title, rule.value(frame, *tensors), tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.rule, ctx.frame, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.count, ctx.results = len(output), differentiable(output)
        ctx.mark_non_differentiable(*(x for n, x in enumerate(output) if n not in ctx.results))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        with primals(ctx.saved_tensors) as tensors:
            filled = [torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents[2:], strict=True)]
            return tuple(placed(ctx.count, ctx.results, ctx.rule.moved(ctx.frame, tensors, filled)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple:
        tensors = ctx.saved_tensors
        places = differentiable(tensors)
        zeros = [torch.zeros_like(tensor) for tensor in tensors]

        # The rule is linear in the tangents, so its gradient at any point is its transpose.
        found = pull(lambda *t: ctx.rule.moved(ctx.frame, tensors, t), zeros, places, at(cotangents, ctx.results))
        return (None, None, *placed(len(tensors), places, found))
