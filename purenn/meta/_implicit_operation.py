"""The solution of equations as an operation with derivatives of every order.

Where ``residual(x, *tensors) = 0`` defines ``x``, the implicit function theorem gives its derivative from that of the
residual: ``dx = -A^-1 d_tensors(residual)`` with ``A = d_x(residual)``. The operation asks a problem for its solution
and for its residual. Its derivatives solve a linear system, which is a problem of the same kind, so they can be
differentiated in turn; nobody looks into how the solution was found.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from purenn.meta._implicit_solvers import LinearSolver
from purenn.transforms._operation import differentiable, placed, pull, push, tangents_at
from purenn.transforms._own_rule import ruled
from purenn.transforms._program import writes_programs

Tensors = Sequence[Tensor]


class Problem(Protocol):
    """Equations whose solution depends on tensors."""

    @property
    def size(self) -> int:
        """How many of the results are the solution; the others have no derivative."""
        ...

    def solve(self, tensors: Tensors) -> list[Tensor]:
        """The results, the solution first."""
        ...

    def residual(self, results: Tensors, tensors: Tensors) -> list[Tensor]:
        """What is zero at the solution, with the solution's shapes."""
        ...

    def inverse(self, results: Tensors, tensors: Tensors, right: Tensors, transposed: bool) -> list[Tensor]:
        """The solution of a linear system with the residual's derivative, or with its transpose."""
        ...


def solution(problem: Problem, tensors: Tensors) -> list[Tensor]:
    """The results of a problem, differentiable."""
    return list(_Solution.apply(problem, *tensors))


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(problem: Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = problem.solve(tensors)
        return (*ruled("implicit", results[: problem.size], tensors), *results[problem.size :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.problem, *tensors = inputs
        ctx.given = len(tensors)
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple:
        problem, saved = ctx.problem, ctx.saved_tensors
        tensors, results = list(saved[: ctx.given]), list(saved[ctx.given :])
        given = cotangents[: problem.size]
        if all(cotangent is None for cotangent in given):
            return (None,) * (1 + len(tensors))
        right = tangents_at(results, range(problem.size), given)
        weights = problem.inverse(results, tensors, [-part for part in right], transposed=True)
        places = differentiable(tensors)
        gradients = pull(lambda *values: problem.residual(results, values), tensors, places, weights)
        return (None, *placed(len(tensors), places, gradients))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        # torch switches forward mode off for this rule, that of transformations further out as well: their tangents
        # would be lost. So it is on, and the own level's tangents are taken off.
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [_without_tangent(tensor) for tensor in ctx.saved_tensors]
            problem, tensors, results = ctx.problem, saved[: ctx.given], saved[ctx.given :]
            places = differentiable(tensors)
            directions = tangents_at(tensors, places, tangents[1:])
            _, change = push(lambda *values: problem.residual(results, values), tensors, places, directions)
            moved = problem.inverse(results, tensors, [-part for part in change], transposed=False)
        rest = [torch.zeros_like(x) if x.is_floating_point() else None for x in results[problem.size :]]
        return (*moved, *rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, problem: Problem, *tensors: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        results = solution(_Batched(problem, in_dims[1:]), tensors)
        return tuple(results), (0,) * len(results)


def _without_tangent(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor).primal


class _Batched:
    """A problem for each example of a batch; the axes of its tensors are given, all others are in front."""

    def __init__(self, problem: Problem, dims: tuple[int | None, ...]) -> None:
        self.problem, self.dims = problem, dims

    @property
    def size(self) -> int:
        return self.problem.size

    def solve(self, tensors: Tensors) -> list[Tensor]:
        return torch.func.vmap(self.problem.solve, (self.dims,))(tuple(tensors))

    def residual(self, results: Tensors, tensors: Tensors) -> list[Tensor]:
        return torch.func.vmap(self.problem.residual, (0, self.dims))(tuple(results), tuple(tensors))

    def inverse(self, results: Tensors, tensors: Tensors, right: Tensors, transposed: bool) -> list[Tensor]:
        inverse = functools.partial(self.problem.inverse, transposed=transposed)
        return torch.func.vmap(inverse, (0, self.dims, 0))(tuple(results), tuple(tensors), tuple(right))


class LinearSystem:
    """``A z = b`` where ``A`` is the derivative of a residual, or its transpose.

    Its tensors are the results and the tensors of the problem that has the residual, and ``b``.
    """

    def __init__(
        self, problem: Problem, solver: LinearSolver, counts: tuple[int, int], *, symmetric: bool, transposed: bool
    ) -> None:
        self.problem, self.solver, self.counts = problem, solver, counts
        self.symmetric, self.transposed = symmetric, transposed

    @property
    def size(self) -> int:
        """The number of tensors of the solution."""
        return self.problem.size

    def solve(self, tensors: Tensors) -> list[Tensor]:
        """The solution, by the linear solver on one long vector."""
        point, right = tensors[: sum(self.counts)], tensors[sum(self.counts) :]
        product = self._product(point)

        def flat_product(vector: Tensor) -> Tensor:
            return _joined(product(_split(vector, right)))

        return _split(self.solver(flat_product, _joined(right)), right)

    def residual(self, results: Tensors, tensors: Tensors) -> list[Tensor]:
        """The product with ``A`` less ``b``."""
        point, right = tensors[: sum(self.counts)], tensors[sum(self.counts) :]
        products = self._product(point)(list(results))
        return [p + self.solver.damping * z - b for p, z, b in zip(products, results, right, strict=True)]

    def inverse(self, results: Tensors, tensors: Tensors, right: Tensors, transposed: bool) -> list[Tensor]:
        """The solution for another right-hand side."""
        other = LinearSystem(
            self.problem,
            self.solver,
            self.counts,
            symmetric=self.symmetric,
            transposed=self.transposed != transposed,
        )
        return solution(other, [*tensors[: sum(self.counts)], *right])

    def _product(self, point: Tensors) -> Any:
        results, tensors = point[: self.counts[0]], point[self.counts[0] :]
        unknown, rest = results[: self.size], results[self.size :]

        def residual(*values: Tensor) -> list[Tensor]:
            return self.problem.residual([*values, *rest], tensors)

        if not (self.symmetric or self.transposed):
            return lambda vector: torch.func.jvp(residual, tuple(unknown), tuple(vector))[1]
        if writes_programs():  # a compiled loop cannot use what was recorded outside of it
            return lambda vector: torch.func.vjp(residual, *unknown)[1](vector)
        return torch.func.vjp(residual, *unknown)[1]


def _joined(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _split(vector: Tensor, like: Tensors) -> list[Tensor]:
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, like, strict=True)]
