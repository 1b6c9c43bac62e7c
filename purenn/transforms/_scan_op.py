"""A loop over the leading axis of tensors, as an operation of a compiled graph that runs a compiled step."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, library

from purenn.transforms._close import close
from purenn.transforms._joint import divide
from purenn.transforms._like import Like
from purenn.transforms._operation import (
    LIBRARY,
    Operation,
    Tensors,
    at,
    batched,
    differentiable,
    empty,
    may_be_differentiated,
    moved,
    placed,
    pull,
    push,
    shared_summed,
    tangents_at,
    value_and_pull,
    zeros_like,
)
from purenn.transforms._program import SHORTENED, TRANSFORMABLE, Program, program
from purenn.transforms._scan_run import run_scan, shortened

Step = Callable[[list[Tensor], list[Tensor], list[Tensor]], Tensors]


def scan_tensors(
    step: Step, carry: Tensors, xs: Tensors, constants: Tensors, length: int, *, reverse: bool, remat: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Run ``step(carry, entries of xs, constants) -> [*carry, *results]`` over the leading axis of `xs`.

    Returns:
        The last carry and the stacked results.
    """
    first, second = len(carry), len(carry) + len(xs)

    def plain(*tensors: Tensor) -> Tensors:
        return step(list(tensors[:first]), list(tensors[first:second]), list(tensors[second:]))

    like = [*map(Like.of, carry), *map(Like.row, xs), *map(Like.of, constants)]
    made, outer = close("scan", plain, like, is_body=True)
    own = len(made.results)
    if may_be_differentiated([*carry, *xs, *constants, *outer]):
        like += map(Like.of, outer)
        made = _differentiable(made, like, first, remat)
    results = Operation.apply(_Scan(made, first, len(xs), length, reverse, remat), *carry, *xs, *constants, *outer)
    return list(results[:first]), list(results[first:own])


def _differentiable(made: Program, like: list[Like], carry: int, remat: bool) -> Program:
    """A step that also returns what its gradient needs.

    First the carry as it was before the step, from which the step can be computed again; then, without remat, the
    intermediate values that a second program, the step's `back`, makes the gradient of.
    """
    own = len(made.results)
    graph, back, residuals = made, None, []
    if not remat:
        places = [n for n, item in enumerate(like) if item.is_differentiable]
        results = differentiable(made.results)

        def joint(*tensors: Tensor) -> Tensors:
            inputs, cotangents = tensors[: len(like)], placed(own, results, tensors[len(like) :])
            values, gradients = value_and_pull(made, inputs, places, cotangents)
            return [*values, *gradients]

        cotangents = [Like.of(made.results[n]) for n in results]
        both, _ = close("scan", joint, [*like, *cotangents])
        graph, backward = divide(both.graph, len(like), own)
        residuals = [Like.of(node.meta["val"]) for node in graph.graph.output_node().args[0][own:]]  # pyright: ignore
        back, _ = close("scan", backward, [*like, *residuals, *cotangents])

    def saving(*tensors: Tensor) -> Tensors:
        results = graph(*tensors)
        return [*results[:own], *tensors[:carry], *results[own:]]

    count = own + carry + len(residuals)
    return close("scan", saving, like, kept=tuple(range(own, count)), back=back)[0]


@attrs.frozen(eq=False)
class _Scan:
    """A loop whose step takes the carry, an entry of every xs, and constants; it returns the carry and results."""

    step: Program
    carry: int
    xs: int
    length: int
    reverse: bool
    remat: bool

    @property
    def kept(self) -> tuple[int, ...]:
        """Where the results are that the gradient needs."""
        return self.step.kept

    def split(self, items: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """The parts that belong to the carry, to xs and to the constants."""
        first, second = self.carry, self.carry + self.xs
        return list(items[:first]), list(items[first:second]), list(items[second:])

    def call(self, tensors: Tensors) -> Tensors:
        return torch.ops.purenn.scan(*self.split(tensors), self.length, self.reverse, self.remat, self.step.name)

    def pull(self, tensors: Tensors, kept: Tensors, wanted: list[int], cotangents: list[Any]) -> list[Any]:
        # The loop runs backwards. It carries the cotangent of the carry and the sums of the constants' gradients.
        carry, xs, constants = self.split(tensors)
        start = self.carry + self.xs
        carries = differentiable(carry)
        summed = [n for n in wanted if n >= start]
        places = [*carries, *(n for n in wanted if self.carry <= n < start), *summed]
        results = [n for n in range(self.carry, len(cotangents)) if cotangents[n] is not None]
        # In a derivative of this one what was kept has a cotangent as well, and only the whole step knows what of.
        again = self.step.back is None or any(n in self.kept for n in results)
        # Not taken within the step, which would close over what is kept, and take all of it as constants.
        count = len(kept)

        def step(state: list[Tensor], entries: list[Tensor], shared: list[Tensor]) -> list[Tensor]:
            above, sums = state[: len(carries)], state[len(carries) :]
            saved, rest = entries[:count], entries[count:]
            rows, given = rest[: self.xs], rest[self.xs :]
            point = [*saved[: self.carry], *rows, *shared]
            full = placed(len(self.step.results), [*carries, *results], [*above, *given])
            if again:
                found = pull(self.step, point, places, full)
            else:
                found = self._back(point, saved[self.carry :], full, places)
            first = len(found) - len(sums)
            added = [total + more for total, more in zip(sums, found[first:], strict=True)]
            return [*found[: len(carries)], *added, *found[len(carries) : first]]

        first = [zeros_like(carry[n]) if cotangents[n] is None else cotangents[n] for n in carries]
        first += [zeros_like(tensors[n]) for n in summed]
        entries = [*kept, *xs, *at(cotangents, results)]
        # A transformation around may never ask for a second derivative: nothing is traced or kept for it beforehand.
        last, stacked = scan_tensors(step, first, entries, constants, self.length, reverse=not self.reverse, remat=True)
        return placed(len(tensors), places, [*last[: len(carries)], *stacked, *last[len(carries) :]])

    def _back(self, point: Tensors, residuals: Tensors, cotangents: list[Any], places: list[int]) -> list[Tensor]:
        assert self.step.back is not None
        own = [result for n, result in enumerate(self.step.results) if n not in self.kept]
        filled = [empty(own[n]).zero_() if (c := cotangents[n]) is None else c for n in differentiable(own)]
        gradients = self.step.back(*point, *residuals, *filled)
        return at(placed(len(point), differentiable(point), gradients), places)

    def push(self, tensors: Tensors, tangents: Sequence[Tensor | None]) -> list[Any]:
        # The same loop with the tangents beside what they belong to.
        carry, xs, constants = self.split(tensors)
        places = differentiable(tensors)
        filled = self.split(placed(len(tensors), places, tangents_at(tensors, places, tangents)))
        moving = [[tangent for tangent in part if tangent is not None] for part in filled]
        results = differentiable(self.step.results)
        carried = sum(n < self.carry for n in results)
        count = len(constants)

        def step(state: list[Tensor], entries: list[Tensor], shared: list[Tensor]) -> list[Tensor]:
            point = [*state[: self.carry], *entries[: self.xs], *shared[:count]]
            direction = [*state[self.carry :], *entries[self.xs :], *shared[count:]]
            values, moved_values = push(self.step, point, places, direction)
            return [
                *(*values[: self.carry], *moved_values[:carried]),
                *(*values[self.carry :], *moved_values[carried:]),
            ]

        state, entries, shared = [[*part, *beside] for part, beside in zip((carry, xs, constants), moving, strict=True)]
        last, stacked = scan_tensors(step, state, entries, shared, self.length, reverse=self.reverse, remat=self.remat)
        own = len(self.step.results) - self.carry
        return placed(len(self.step.results), results, [*last[self.carry :], *stacked[own:]])

    def batched(self, size: int, in_dims: tuple, tensors: Tensors) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        carry, xs, constants = self.split(tensors)
        carry_dims, x_dims, constant_dims = self.split(in_dims)
        # All of the carry is batched, since a step makes it depend on everything; in xs behind the axis of the loop.
        carry = batched(carry, carry_dims, size)
        xs, constants = moved(xs, x_dims, 1), moved(constants, constant_dims)
        dims = (*[0] * self.carry, *(None if dim is None else 0 for dim in (*x_dims, *constant_dims)))
        like = [*map(Like.of, carry), *map(Like.row, xs), *map(Like.of, constants)]
        back = self._batched_back(size, dims, like)
        made, _ = close("scan", torch.func.vmap(self.step, dims), like, kept=self.kept, back=back)
        results = Operation.apply(attrs.evolve(self, step=made), *carry, *xs, *constants)
        return results, tuple(0 if n < self.carry else 1 for n in range(len(results)))

    def _batched_back(self, size: int, dims: tuple[int | None, ...], like: list[Like]) -> Program | None:
        if self.step.back is None:
            return None
        results = [Like.of(result) for result in self.step.results]
        own = [item for n, item in enumerate(results) if n not in self.kept and item.is_differentiable]
        added = [item.batched(size) for item in (*at(results, self.kept[self.carry :]), *own)]
        many = torch.func.vmap(self.step.back, (*dims, *[0] * len(added)))
        each = [dims[n] is not None for n, item in enumerate(like) if item.is_differentiable]
        return close("scan", shared_summed(many, each), [*like, *added])[0]


def _applied(
    carry: Tensors, xs: Tensors, constants: Tensors, length: int, reverse: bool, remat: bool, step: str
) -> Tensors:
    made = program(step)
    if made.kept:
        plan = _Scan(made, len(carry), len(xs), length, reverse, remat)
        return Operation.apply(plan, *carry, *xs, *constants)
    # Nobody differentiated the loop when it was traced; now somebody may.
    last, stacked = scan_tensors(
        lambda *parts: made(*parts[0], *parts[1], *parts[2]), carry, xs, constants, length, reverse=reverse, remat=remat
    )
    return [*last, *stacked]


def _fake(
    carry: Tensors, xs: Tensors, constants: Tensors, length: int, reverse: bool, remat: bool, step: str
) -> list[Tensor]:
    results, count = program(step).results, len(carry)
    return [*(empty(result) for result in results[:count]), *(empty(result, length) for result in results[count:])]


def _setup(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    carry, xs, constants, length, reverse, remat, step = inputs
    ctx.plan = _Scan(program(step), len(carry), len(xs), length, reverse, remat)
    ctx.sizes = len(carry), len(xs), len(constants)
    ctx.save_for_backward(*carry, *xs, *constants, *at(output, ctx.plan.kept))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, cotangents: list[Any]) -> tuple:
    saved = ctx.saved_tensors
    given = sum(ctx.sizes)
    tensors = saved[:given]
    gradients = ctx.plan.pull(tensors, saved[given:], differentiable(tensors), list(cotangents))
    return (*ctx.plan.split(gradients), None, None, None, None)


LIBRARY.define(
    "scan(Tensor[] carry, Tensor[] xs, Tensor[] constants, int length, bool reverse, bool remat, str step) -> Tensor[]"
)
LIBRARY.impl("scan", run_scan, "CompositeExplicitAutograd")
TRANSFORMABLE[torch.ops.purenn.scan.default] = _applied
SHORTENED[torch.ops.purenn.scan.default] = shortened
library.register_fake("purenn::scan", _fake, lib=LIBRARY)
# For gradients that are asked for outside of the jitted function: the compiler differentiates its graph.
library.register_autograd("purenn::scan", _backward, setup_context=_setup, lib=LIBRARY)
