"""Linear systems that are known only by what their matrix does to a vector.

All methods are loops of `pn.while_loop`, so they run in eager, batched (each example until its own end) and compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purenn._modes import is_traced
from purenn.errors import ArgumentError, ConvergenceError
from purenn.meta._implicit_levels import physical
from purenn.transforms import vmap, while_loop

Product = Callable[[Tensor], Tensor]

# What rounding leaves of the residual of a reasonable system.
_TOLERANCES = {torch.float64: 1e-10}
_TOLERANCE = 1e-5


class LinearSolver(NamedTuple):
    """A method and when it stops.

    Attributes:
        method: "cg", "bicgstab", "neumann" or "dense".
        tolerance: the largest residual in proportion to the right-hand side; None for 1e-10 in float64 and 1e-5
            otherwise; 0 to make all iterations.
        iterations: the most of them.
        damping: this multiple of the identity is added to the matrix.
        step: the step size of "neumann".
    """

    method: str
    tolerance: float | None = None
    iterations: int = 1000
    damping: float = 0.0
    step: float = 1.0

    def checked(self) -> "LinearSolver":
        """The same.

        Raises:
            ArgumentError: an option that does not exist.
        """
        if self.method not in _METHODS:
            known = ", ".join(repr(name) for name in _METHODS)
            raise ArgumentError(f"implicit: solver must be one of {known}, got {self.method!r}.")
        for name in ("tolerance", "damping"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ArgumentError(f"implicit: {name} must not be negative, got {value}.")
        if self.iterations < 1:
            raise ArgumentError(f"implicit: iterations must be at least 1, got {self.iterations}.")
        if not self.step > 0:
            raise ArgumentError(f"implicit: step must be positive, got {self.step}.")
        return self

    def __call__(self, product: Product, right: Tensor) -> Tensor:
        """The solution of ``product(x) + damping * x = right``, a vector.

        Raises:
            ConvergenceError: the tolerance was not reached. In a compiled function the result is NaN instead.
        """
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = _TOLERANCES.get(right.dtype, _TOLERANCE)
        limit = tolerance * right.norm()

        def damped(x: Tensor) -> Tensor:
            return product(x) + self.damping * x if self.damping else product(x)

        x, residual = _METHODS[self.method](self, damped, right, limit)
        if not tolerance:
            return x
        reached = residual.norm() <= limit
        if is_traced():
            return torch.where(reached, x, torch.nan)
        if not physical(reached).all():
            raise ConvergenceError(self._failure(residual.norm() / right.norm(), tolerance))
        return x

    def _failure(self, ratio: Tensor, tolerance: float) -> str:
        found = physical(ratio).max().item()
        if self.method == "dense":
            return (
                f"implicit: the linear system of the derivative has no solution (its residual is {found:.1e} of the "
                f"right-hand side): the solution is not isolated. Give a damping."
            )
        return (
            f"implicit: '{self.method}' has not solved the linear system of the derivative within {self.iterations} "
            f"iterations: the residual is {found:.1e} of the right-hand side, and tolerance={tolerance:g}. Give more "
            f"iterations, a damping or another solver, or tolerance=0 to take what the iterations give."
        )


def _going(solver: LinearSolver, residual: Tensor, limit: Tensor, count: Tensor) -> Tensor:
    return (residual.norm() > limit) & (count < solver.iterations)


def _cg(solver: LinearSolver, product: Product, b: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    # Hestenes, Stiefel: Methods of Conjugate Gradients for Solving Linear Systems, 1952.
    def step(carry: Any) -> Any:
        x, r, p, count = carry
        q, size = product(p), r @ r
        share = size / (p @ q)
        x, r = x + share * p, r - share * q
        return x, r, r + (r @ r) / size * p, count + 1

    count = torch.zeros((), dtype=torch.int64, device=b.device)
    start = torch.zeros_like(b), b.clone(), b.clone(), count
    x, r, _, _ = while_loop(lambda carry: _going(solver, carry[1], limit, carry[3]), step, start)
    return x, r


def _bicgstab(solver: LinearSolver, product: Product, b: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    # van der Vorst: Bi-CGSTAB, 1992.
    def step(carry: Any) -> Any:
        x, r, p, count = carry
        q, along = product(p), b @ r
        share = along / (b @ q)
        s = r - share * q
        t = product(s)
        # An s of zero is the end; the quotient must not spoil it.
        size = t @ t
        omega = torch.where(size > 0, (t @ s) / torch.where(size > 0, size, 1), 0)
        x, r = x + share * p + omega * s, s - omega * t
        turned = torch.where(omega == 0, 0, (b @ r) / along * share / torch.where(omega == 0, 1, omega))
        return x, r, r + turned * (p - omega * q), count + 1

    count = torch.zeros((), dtype=torch.int64, device=b.device)
    start = torch.zeros_like(b), b.clone(), b.clone(), count
    x, r, _, _ = while_loop(lambda carry: _going(solver, carry[1], limit, carry[3]), step, start)
    return x, r


def _neumann(solver: LinearSolver, product: Product, b: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    # The sum of step (1 - step A)^k b: Richardson's iteration.
    def step(carry: Any) -> Any:
        x, r, count = carry
        change = solver.step * r
        return x + change, r - product(change), count + 1

    start = torch.zeros_like(b), b.clone(), torch.zeros((), dtype=torch.int64, device=b.device)
    x, r, _ = while_loop(lambda carry: _going(solver, carry[1], limit, carry[2]), step, start)
    return x, r


def _dense(solver: LinearSolver, product: Product, b: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    columns = vmap(product)(torch.eye(len(b), dtype=b.dtype, device=b.device))
    x = torch.linalg.solve_ex(columns.T, b)[0]
    return x, b - columns.T @ x


_METHODS = {"cg": _cg, "bicgstab": _bicgstab, "neumann": _neumann, "dense": _dense}
