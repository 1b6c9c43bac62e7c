"""A forward-mode rule of one's own; reverse mode is its transpose."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import optree
import torch
from torch import Tensor
from torch.autograd import forward_ad

from purenn.errors import GradientError
from purenn.transforms._custom import Frame, Rule
from purenn.transforms._own_rule import ruled

P = ParamSpec("P")
R = TypeVar("R")


class custom_jvp(Rule[P, R]):  # noqa: N801 - a decorator
    """A function with a forward-mode rule of its own; reverse mode is its transpose.

    ``f.defjvp(rule)`` sets it: ``rule(primals, tangents) -> (output, output tangent)``, both arguments tuples with an
    entry for each positional argument. The output's tangent must be linear in the tangents.

    Raises:
        GradientError: when called: no rule is set, the rule does not return a pair of the output's structure, or
            torch.compile (unlike `pn.jit`) would lose it.

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
        results = _Forward.apply(self, frame, *tensors)
        return cast(R, optree.tree_unflatten(frame.out_spec, list(results)))

    def value(self, frame: Frame, tensors: Any) -> tuple[Tensor, ...]:
        """The function's outputs."""
        fn: Callable[..., Any] = self._fn
        leaves, frame.out_spec = optree.tree_flatten(fn(*frame.args(tensors)))
        own = {id(tensor) for tensor in tensors}
        return tuple(leaf.clone() if id(leaf) in own else leaf for leaf in leaves)

    def moved(self, frame: Frame, tensors: Any, tangents: Any) -> tuple[Tensor, ...]:
        """The outputs' tangents, by the rule."""
        assert self._rule is not None
        pair = self._rule(frame.args(tensors), frame.args(tangents))
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise GradientError(
                f"custom_jvp: the rule of '{self.name}' must return (output, output tangent), got a "
                f"{type(pair).__name__}."
            )
        leaves, spec = optree.tree_flatten(pair[1])
        if spec != frame.out_spec:
            raise GradientError(
                f"custom_jvp: the tangent that the rule of '{self.name}' returns must look like the output."
            )
        return tuple(leaves)


class _Batched:
    # A rule for each example of a batch; the axes of the arguments are given, results have theirs in front.
    def __init__(self, rule: Any, dims: tuple[int | None, ...]) -> None:
        self.rule, self.dims, self.name = rule, dims, rule.name

    def value(self, frame: Frame, tensors: Any) -> tuple[Tensor, ...]:
        return torch.func.vmap(lambda *values: self.rule.value(frame, values), self.dims)(*tensors)

    def moved(self, frame: Frame, tensors: Any, tangents: Any) -> tuple[Tensor, ...]:
        apply = torch.func.vmap(lambda x, t: self.rule.moved(frame, x, t), (self.dims, self.dims))
        return apply(tuple(tensors), tuple(tangents))


class _Forward(torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, in_dims: tuple, rule: Any, frame: Frame, *tensors: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        results = _Forward.apply(_Batched(rule, in_dims[2:]), frame, *tensors)
        return results, (0,) * len(results)

    @staticmethod
    def forward(rule: custom_jvp, frame: Frame, *tensors: Tensor) -> tuple:
        return tuple(ruled(f"custom_jvp '{rule.name}'", rule.value(frame, tensors), tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.rule, ctx.frame, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        # torch switches forward mode off here, that of transformations further out as well: their tangents would be
        # lost. So it is on, and the own level's tangents are taken off.
        with forward_ad._set_fwd_grad_enabled(True):
            tensors = [forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors]
            filled = [torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents[2:], strict=True)]
            return ctx.rule.moved(ctx.frame, tensors, filled)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple:
        tensors = ctx.saved_tensors
        places = [n for n, tensor in enumerate(tensors) if tensor.is_floating_point() or tensor.is_complex()]
        zeros = [torch.zeros_like(tensor) for tensor in tensors]

        def linear(*values: Tensor) -> tuple[Tensor, ...]:
            tangents = list(zeros)
            for place, value in zip(places, values, strict=True):
                tangents[place] = value
            return ctx.rule.moved(ctx.frame, tensors, tangents)

        # The rule is linear in the tangents, so its gradient at any point is its transpose.
        pull = torch.func.vjp(linear, *[zeros[place] for place in places])[1]
        gradients: list[Tensor | None] = [None] * len(tensors)
        for place, gradient in zip(places, pull(cotangents), strict=True):
            gradients[place] = gradient
        return (None, None, *gradients)
