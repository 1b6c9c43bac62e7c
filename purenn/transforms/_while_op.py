"""A loop until a condition fails, as an operation of a compiled graph that runs a compiled test and step."""

from collections.abc import Sequence
from typing import Any, NoReturn

import attrs
import torch
from torch import Tensor, library

from purenn.errors import GradientError
from purenn.transforms._branch_op import select
from purenn.transforms._close import close
from purenn.transforms._like import Like
from purenn.transforms._operation import (
    LIBRARY,
    Flat,
    Operation,
    Tensors,
    batched,
    differentiable,
    empty,
    independent,
    moved,
    placed,
    push,
    tangents_at,
)
from purenn.transforms._program import TRANSFORMABLE, Program, program


def while_tensors(test: Flat, step: Flat, carry: Tensors, constants: Tensors = ()) -> Tensors:
    """Run ``carry = step(*carry, *constants)`` while ``test(*carry, *constants)``, a list of one boolean."""
    like = list(map(Like.of, (*carry, *constants)))
    count = len(like)
    first, outer = close("while_loop", test, like)
    second, more = close("while_loop", step, like, is_body=True)
    split = count + len(outer)
    everything = [*constants, *outer, *more]
    like = list(map(Like.of, (*carry, *everything)))
    # Both take what either closes over.
    tested, _ = close("while_loop", lambda *tensors: first(*tensors[:split]), like)
    stepped, _ = close("while_loop", lambda *tensors: second(*tensors[:count], *tensors[split:]), like)
    return Operation.apply(_While(tested, stepped, len(carry)), *carry, *everything)


@attrs.frozen(eq=False)
class _While:
    """A test and a step, both of the carry and of constants."""

    test: Program
    step: Program
    carry: int
    kept: tuple[int, ...] = ()

    def call(self, tensors: Tensors) -> Tensors:
        carry, constants = list(tensors[: self.carry]), list(tensors[self.carry :])
        return torch.ops.purenn.while_loop(carry, constants, self.test.name, self.step.name)

    def pull(self, tensors: Tensors, kept: Tensors, wanted: list[int], cotangents: list[Any]) -> list[Any]:
        _refuse()

    def push(self, tensors: Tensors, tangents: Sequence[Tensor | None]) -> list[Any]:
        # The same loop with the tangents beside what they belong to; they have no part in the test.
        carry, constants = tensors[: self.carry], tensors[self.carry :]
        places = differentiable(tensors)
        directions = tangents_at(tensors, places, tangents)
        carried = len(differentiable(carry))
        size = self.carry + carried

        def point(given: Tensors) -> list[Tensor]:
            return [*given[: self.carry], *given[size : size + len(constants)]]

        def step(*given: Tensor) -> list[Tensor]:
            direction = [*given[self.carry : size], *given[size + len(constants) :]]
            values, moved_values = push(self.step, point(given), places, direction)
            return [*values, *moved_values]

        state = [*carry, *directions[:carried]]
        shared = [*constants, *directions[carried:]]
        results = while_tensors(lambda *given: self.test(*point(given)), step, state, shared)
        return placed(self.carry, differentiable(carry), results[self.carry :])

    def batched(self, size: int, in_dims: tuple, tensors: Tensors) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # Every example takes part until the last one has come to its end, but changes only until its own.
        carry = batched(tensors[: self.carry], in_dims[: self.carry], size)
        constants = moved(tensors[self.carry :], in_dims[self.carry :])
        dims = (*[0] * self.carry, *(None if dim is None else 0 for dim in in_dims[self.carry :]))
        test, run = torch.func.vmap(self.test, dims), torch.func.vmap(self.step, dims)

        def step(*given: Tensor) -> list[Tensor]:
            (going,) = test(*given)
            return select(going, run(*given), given[: self.carry])

        results = while_tensors(lambda *given: [test(*given)[0].any()], step, carry, constants)
        return tuple(results), (0,) * self.carry


def _refuse() -> NoReturn:
    raise GradientError(
        "while_loop: a loop whose number of steps is not known beforehand has no reverse-mode gradient under pn.jit. "
        "Use pn.scan or pn.fori_loop with a fixed number of steps (and torch.where to stop early), pn.jvp, or do not "
        "jit this function: in eager the loop is plain Python."
    )


def _run(carry: Tensors, constants: Tensors, test: str, step: str) -> list[Tensor]:
    testing, stepping, given = program(test), program(step), carry
    while testing.run(*carry, *constants)[0].item():
        carry = stepping.run(*carry, *constants)
    return independent(carry, [*given, *constants])


def _applied(carry: Tensors, constants: Tensors, test: str, step: str) -> Tensors:
    return Operation.apply(_While(program(test), program(step), len(carry)), *carry, *constants)


def _fake(carry: Tensors, constants: Tensors, test: str, step: str) -> list[Tensor]:
    return [empty(result) for result in program(step).results]


def _setup(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    pass


def _backward(ctx: Any, cotangents: list[Any]) -> NoReturn:
    _refuse()


LIBRARY.define("while_loop(Tensor[] carry, Tensor[] constants, str test, str step) -> Tensor[]")
LIBRARY.impl("while_loop", _run, "CompositeExplicitAutograd")
TRANSFORMABLE[torch.ops.purenn.while_loop.default] = _applied
library.register_fake("purenn::while_loop", _fake, lib=LIBRARY)
library.register_autograd("purenn::while_loop", _backward, setup_context=_setup, lib=LIBRARY)
