"""A function with a derivative rule of its own, as an operation of a graph that is differentiated afterwards.

The function and its rule are traced to programs. Where a body's graph is transformed the operation is the rule again;
where it is compiled the function is written out. In the graph of a jitted function that is differentiated from outside
the operation runs the compiled function.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import attrs
import torch
from torch import Tensor, library

from purenn.errors import GradientError
from purenn.transforms._close import close
from purenn.transforms._like import Like
from purenn.transforms._operation import (
    LIBRARY,
    Flat,
    Operation,
    Tensors,
    at,
    batched,
    differentiable,
    empty,
    independent,
    moved,
    placed,
    pull,
    shared_summed,
    tangents_at,
    zeros_like,
)
from purenn.transforms._program import INLINED, TRANSFORMABLE, Program, program

Maybe = Sequence[Tensor | None]


def reverse_tensors(
    name: str,
    value: Callable[[Tensors], tuple[Tensors, Tensors]],
    rule: Callable[[Tensors, Tensors, Tensors], Maybe],
    tensors: Tensors,
) -> Tensors:
    """The results of a function with a reverse-mode rule.

    Args:
        name: of the function, for errors.
        value: of the arguments: the results and residuals.
        rule: of the residuals, of cotangents of the results, and of the arguments: gradients of the arguments.
        tensors: the arguments.
    """
    own, count = len(tensors), 0

    def both(*given: Tensor) -> Tensors:
        nonlocal count
        results, kept = value(given)
        count = len(results)
        return [*results, *kept]

    like = list(map(Like.of, tensors))
    made, outer = close(name, both, like, is_body=True)
    results, kept = made.results[:count], made.results[count:]
    places = differentiable(results)

    def back(*values: Tensor) -> Tensors:
        given, residuals, above = values[:own], values[own : own + len(kept)], values[own + len(kept) :]
        cotangents = tangents_at(results, range(count), placed(count, places, above))
        return tangents_at(given, differentiable(given), rule(residuals, cotangents, given))

    beside = list(map(Like.of, (*kept, *at(results, places))))
    turned, more = close(name, back, [*like, *beside], is_body=True)
    plan = _Reverse(name, made, turned, own, own + len(outer), count)
    return Operation.apply(plan, *tensors, *outer, *more)[:count]


def forward_tensors(name: str, value: Flat, rule: Callable[[Tensors, Tensors], Tensors], tensors: Tensors) -> Tensors:
    """The results of a function with a forward-mode rule.

    Args:
        name: of the function, for errors.
        value: of the arguments: the results.
        rule: of the arguments and of their tangents: tangents of the differentiable results.
        tensors: the arguments.
    """
    own, places = len(tensors), differentiable(tensors)

    def push(*values: Tensor) -> Tensors:
        given, tangents = values[:own], placed(own, places, values[own:])
        return rule(given, tangents_at(given, range(own), tangents))

    like = list(map(Like.of, tensors))
    made, outer = close(name, value, like, is_body=True)
    turned, more = close(name, push, [*like, *at(like, places)], is_body=True)
    plan = _Forward(name, made, turned, own, own + len(outer), len(made.results))
    return Operation.apply(plan, *tensors, *outer, *more)


@attrs.frozen(eq=False)
class _Custom(abc.ABC):
    """What both kinds of rules share.

    Attributes:
        name: of the function, for errors.
        value: the function, of the tensors before `split`: its arguments and what it closes over.
        rule: of the arguments, of what belongs to them or to the results, and of the tensors from `split` on, which the
            rule closes over.
        own: how many of the tensors are arguments. The others are constants: the rule says nothing of them.
        split: see above.
        count: how many of the results are the function's; the rest is kept for the rule.
    """

    name: str
    value: Program
    rule: Program
    own: int
    split: int
    count: int

    @property
    def kept(self) -> tuple[int, ...]:
        """Which of the results the rule needs."""
        return tuple(range(self.count, len(self.value.results)))

    def call(self, tensors: Tensors) -> Tensors:
        given, more = list(tensors[: self.split]), list(tensors[self.split :])
        programs, forward = (self.value.name, self.rule.name), isinstance(self, _Forward)
        return torch.ops.purenn.custom(given, more, *programs, self.name, self.own, self.count, forward)

    def turned(self, tensors: Tensors, beside: Tensors) -> Tensors:
        """What the rule returns."""
        return self.rule(*tensors[: self.own], *beside, *tensors[self.split :])

    def batched(self, size: int, in_dims: tuple, tensors: Tensors) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        tensors = moved(tensors, in_dims)
        dims = [None if dim is None else 0 for dim in in_dims]
        if all(dim is None for dim in dims[: self.own]):
            # Only what is closed over differs from example to example; so do the results then, and their derivatives.
            tensors[: self.own] = batched(tensors[: self.own], dims[: self.own], size)
            dims[: self.own] = [0] * self.own
        own = dims[: self.own]
        beside, change = self.beside([own[n] for n in differentiable(tensors[: self.own])])
        value = _many(self.name, self.value, size, dims[: self.split])
        rule = _many(self.name, self.rule, size, [*own, *beside, *dims[self.split :]], change)
        results = Operation.apply(attrs.evolve(self, value=value, rule=rule), *tensors)
        return results, (0,) * len(results)

    @abc.abstractmethod
    def beside(self, own: list[int | None]) -> tuple[list[int | None], Callable[[Flat], Flat]]:
        """For the batched rule, given the axes of the differentiable arguments.

        Returns:
            The axes of what is beside the arguments, and how the rule for each example becomes the batched one.
        """


def _many(
    name: str, made: Program, size: int, dims: Sequence[int | None], change: Callable[[Flat], Flat] = lambda many: many
) -> Program:
    like = [item if dim is None else item.batched(size) for item, dim in zip(made.like, dims, strict=True)]
    return close(name, change(torch.func.vmap(made, tuple(dims))), like)[0]


class _Reverse(_Custom):
    """With a rule of the kept results and of cotangents of the others."""

    def pull(self, tensors: Tensors, kept: Tensors, wanted: list[int], cotangents: list[Any]) -> list[Any]:
        results = differentiable(self.value.results[: self.count])
        gradients: list[Any] = [None] * len(tensors)
        if any(cotangents[n] is not None for n in results):
            found = self.turned(tensors, [*kept, *tangents_at(self.value.results, results, cotangents)])
            gradients = placed(len(tensors), differentiable(tensors[: self.own]), found)
        if any(cotangents[n] is not None for n in self.kept):
            # A derivative of the rule: it has used residuals, which are functions of the arguments.
            places = [n for n in wanted if n < self.own]
            above = placed(len(cotangents), self.kept, at(cotangents, self.kept))
            for n, more in zip(places, pull(self.value, tensors[: self.split], places, above), strict=True):
                gradients[n] = more if gradients[n] is None else gradients[n] + more
        return gradients

    def push(self, tensors: Tensors, tangents: Sequence[Tensor | None]) -> list[Any]:
        refuse_forward(self.name)

    def beside(self, own: list[int | None]) -> tuple[list[int | None], Callable[[Flat], Flat]]:
        count = len(self.kept) + len(differentiable(self.value.results[: self.count]))
        return [0] * count, lambda many: shared_summed(many, [dim is not None for dim in own])


class _Forward(_Custom):
    """With a rule of tangents of the arguments."""

    def pull(self, tensors: Tensors, kept: Tensors, wanted: list[int], cotangents: list[Any]) -> list[Any]:
        # The rule is linear in the tangents, so its gradient at any point is its transpose.
        places, results = differentiable(tensors[: self.own]), differentiable(self.value.results)
        zeros = [zeros_like(tensors[n]) for n in places]
        found = pull(lambda *moving: self.turned(tensors, moving), zeros, range(len(zeros)), at(cotangents, results))
        return placed(len(tensors), places, found)

    def push(self, tensors: Tensors, tangents: Sequence[Tensor | None]) -> list[Any]:
        found = self.turned(tensors, tangents_at(tensors, differentiable(tensors[: self.own]), tangents))
        return placed(self.count, differentiable(self.value.results), found)

    def beside(self, own: list[int | None]) -> tuple[list[int | None], Callable[[Flat], Flat]]:
        return own, lambda many: many


def refuse_forward(name: str) -> NoReturn:
    """The error where a function with a reverse-mode rule meets forward mode."""
    raise GradientError(
        f"{name}: its rule is for reverse mode, and forward mode (pn.jvp, pn.jacfwd, pn.hessian) has none. Use "
        f"pn.custom_jvp, whose rule serves both modes, or reverse mode: pn.jacrev(pn.grad(f)) is a Hessian."
    )


def _plan(given: Tensors, value: str, rule: str, name: str, own: int, count: int, forward: bool) -> _Reverse | _Forward:
    return (_Forward if forward else _Reverse)(name, program(value), program(rule), own, len(given), count)


def _run(given: Tensors, more: Tensors, value: str, *_: Any) -> list[Tensor]:
    return independent(program(value).run(*given), given)


def _applied(given: Tensors, more: Tensors, *rest: Any) -> Tensors:
    return Operation.apply(_plan(given, *rest), *given, *more)


def _fake(given: Tensors, more: Tensors, value: str, *_: Any) -> list[Tensor]:
    return [empty(result) for result in program(value).results]


def _setup(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    given, more, *rest = inputs
    ctx.plan, ctx.sizes = _plan(given, *rest), (len(given), len(more))
    ctx.save_for_backward(*given, *more, *at(output, ctx.plan.kept))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, cotangents: list[Any]) -> tuple:
    saved, given, total = ctx.saved_tensors, ctx.sizes[0], sum(ctx.sizes)
    tensors, kept = saved[:total], saved[total:]
    gradients = ctx.plan.pull(tensors, kept, differentiable(tensors), list(cotangents))
    return gradients[:given], gradients[given:], None, None, None, None, None, None


LIBRARY.define(
    "custom(Tensor[] given, Tensor[] more, str value, str rule, str name, int own, int count, bool forward) -> Tensor[]"
)
LIBRARY.impl("custom", _run, "CompositeExplicitAutograd")
TRANSFORMABLE[torch.ops.purenn.custom.default] = _applied
INLINED[torch.ops.purenn.custom.default] = 2
library.register_fake("purenn::custom", _fake, lib=LIBRARY)
library.register_autograd("purenn::custom", _backward, setup_context=_setup, lib=LIBRARY)
