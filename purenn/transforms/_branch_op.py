"""A choice between two functions, as an operation of a compiled graph that runs one compiled branch."""

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, library

from purenn.transforms._close import close
from purenn.transforms._like import Like
from purenn.transforms._operation import (
    LIBRARY,
    Flat,
    Operation,
    Tensors,
    at,
    differentiable,
    empty,
    independent,
    moved,
    placed,
    pull,
    push,
    tangents_at,
)
from purenn.transforms._program import TRANSFORMABLE, Program, program


def cond_tensors(predicate: Tensor, yes: Flat, no: Flat, operands: Tensors) -> Tensors:
    """The results of one of two functions of the same operands, which return the same kinds of tensors."""
    like = list(map(Like.of, operands))
    count = len(like)
    first, outer = close("cond", yes, like, is_body=True)
    second, more = close("cond", no, like, is_body=True)
    split = count + len(outer)
    everything = [*operands, *outer, *more]
    like = list(map(Like.of, everything))
    # Both take what either closes over.
    one, _ = close("cond", lambda *tensors: first(*tensors[:split]), like)
    other, _ = close("cond", lambda *tensors: second(*tensors[:count], *tensors[split:]), like)
    return Operation.apply(_Branches(one, other), predicate, *everything)


@attrs.frozen(eq=False)
class _Branches:
    """Two programs with the same arguments and results; the first tensor is the predicate."""

    yes: Program
    no: Program
    kept: tuple[int, ...] = ()

    def call(self, tensors: Tensors) -> Tensors:
        return torch.ops.purenn.cond(tensors[0], list(tensors[1:]), self.yes.name, self.no.name)

    def pull(self, tensors: Tensors, kept: Tensors, wanted: list[int], cotangents: list[Any]) -> list[Any]:
        predicate, *operands = tensors
        count, results = len(operands), [n for n, cotangent in enumerate(cotangents) if cotangent is not None]
        places = [n - 1 for n in wanted]

        def gradients(branch: Program) -> Flat:
            def run(*given: Tensor) -> list[Tensor]:
                above = placed(len(cotangents), results, given[count:])
                return pull(branch, given[:count], places, above)

            return run

        above = at(cotangents, results)
        values = cond_tensors(predicate, gradients(self.yes), gradients(self.no), [*operands, *above])
        return placed(len(tensors), wanted, values)

    def push(self, tensors: Tensors, tangents: Sequence[Tensor | None]) -> list[Any]:
        predicate, *operands = tensors
        places = differentiable(operands)
        count, results = len(operands), differentiable(self.yes.results)

        def tangent(branch: Program) -> Flat:
            return lambda *given: push(branch, given[:count], places, given[count:])[1]

        beside = tangents_at(operands, places, tangents[1:])
        values = cond_tensors(predicate, tangent(self.yes), tangent(self.no), [*operands, *beside])
        return placed(len(self.yes.results), results, values)

    def batched(self, size: int, in_dims: tuple, tensors: Tensors) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        predicate, *operands = tensors
        dim, *dims = in_dims
        operands = moved(operands, dims)
        fronts = tuple(None if d is None else 0 for d in dims)
        branches = [torch.func.vmap(branch, fronts) for branch in (self.yes, self.no)]
        if dim is None:
            results = cond_tensors(predicate, branches[0], branches[1], operands)
        else:
            # Each example has a branch of its own: both are run.
            yes, no = (branch(*operands) for branch in branches)
            results = select(predicate.movedim(dim, 0), yes, no)
        return tuple(results), (0,) * len(results)


def select(chosen: Tensor, yes: Tensors, no: Tensors) -> list[Tensor]:
    """From two lists the one or the other, by a predicate for each entry of their leading axes."""
    return [
        torch.where(chosen.reshape(*chosen.shape, *[1] * (a.dim() - chosen.dim())), a, b)
        for a, b in zip(yes, no, strict=True)
    ]


def _run(predicate: Tensor, operands: Tensors, yes: str, no: str) -> list[Tensor]:
    return independent(program(yes if predicate.item() else no).run(*operands), operands)


def _applied(predicate: Tensor, operands: Tensors, yes: str, no: str) -> Tensors:
    return Operation.apply(_Branches(program(yes), program(no)), predicate, *operands)


def _fake(predicate: Tensor, operands: Tensors, yes: str, no: str) -> list[Tensor]:
    return [empty(result) for result in program(yes).results]


def _setup(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    predicate, operands, yes, no = inputs
    ctx.plan = _Branches(program(yes), program(no))
    ctx.save_for_backward(predicate, *operands)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, cotangents: list[Any]) -> tuple:
    tensors = ctx.saved_tensors
    gradients = ctx.plan.pull(tensors, (), differentiable(tensors), list(cotangents))
    return gradients[0], gradients[1:], None, None


LIBRARY.define("cond(Tensor predicate, Tensor[] operands, str yes, str no) -> Tensor[]")
LIBRARY.impl("cond", _run, "CompositeExplicitAutograd")
TRANSFORMABLE[torch.ops.purenn.cond.default] = _applied
library.register_fake("purenn::cond", _fake, lib=LIBRARY)
library.register_autograd("purenn::cond", _backward, setup_context=_setup, lib=LIBRARY)
