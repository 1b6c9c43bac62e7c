"""Derivatives of solutions: of fixed points and stationary points, without differentiating the way to them."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from purenn.errors import ArgumentError
from purenn.meta._implicit_call import Call, Setting
from purenn.meta._implicit_solvers import LinearSolver

P = ParamSpec("P")
R = TypeVar("R")

_SOLVERS: dict[str, str] = {"stationary": "cg", "fixed_point": "bicgstab", "root": "bicgstab"}


def implicit(
    solve: Callable[P, R],
    *,
    stationary: Callable[..., Any] | None = None,
    fixed_point: Callable[..., Any] | None = None,
    root: Callable[..., Any] | None = None,
    solver: str | None = None,
    tolerance: float | None = None,
    iterations: int = 1000,
    damping: float = 0.0,
    step: float = 1.0,
    solution_tolerance: float | None = None,
    has_aux: bool = False,
) -> Callable[P, R]:
    """A function that finds a solution, with the derivatives of the solution.

    `solve` may do what it likes, it is not differentiated: derivatives come from the condition that the solution meets,
    by the implicit function theorem, and cost one linear system whatever the number of steps was. They exist to any
    order, in forward and reverse mode, under `pn.vmap` and `pn.jit`. Compile the gradient, ``pn.jit(pn.grad(f))``: a
    function that is compiled first cannot be differentiated.

    One condition must be given. It is a function of the solution and of all arguments of `solve`; what the solution
    depends on must be among these, closed-over tensors are constants. Arguments that only `solve` uses, such as a first
    guess, have the derivative zero.

    Args:
        solve: returns the solution, a tree; its floating-point parameters that are not frozen are differentiated, other
            leaves have the derivative zero.
        stationary: ``f(x, *args)``, a scalar whose gradient with respect to ``x`` is zero at the solution.
        fixed_point: ``g(x, *args)``, a tree like ``x`` and equal to it at the solution.
        root: ``h(x, *args)``, a tree like ``x`` that is zero at the solution.
        solver: how the linear system with the matrix ``A`` is solved, the Hessian of ``f``, ``1 - dg/dx`` or ``dh/dx``:
            "cg" if ``A`` is symmetric and positive definite; "bicgstab" for any; "neumann" for the sum of
            ``step (1 - step A)^k``, which converges where fixed-point iterations or gradient descent do; "dense" to
            write a small ``A`` down. Default: "cg" for `stationary`, otherwise "bicgstab".
        tolerance: the largest residual of that system in proportion to its right-hand side; 0 to make exactly
            `iterations` steps and take what they give. Default: 1e-10 in float64, otherwise 1e-5.
        iterations: the most steps of the solver. Default: 1000.
        damping: this multiple of the identity is added to ``A``. Default: 0.
        step: the step size of "neumann". Default: 1.
        solution_tolerance: the largest root mean square of the condition's equations that is taken for a solution.
            Default: None, everything is.
        has_aux: whether `solve` returns ``(solution, auxiliary)``; the auxiliary tree has no derivative.

    Returns:
        A function of the same arguments with the same results.

    Raises:
        ArgumentError: not one condition, or an option that does not exist.
        GradientError: when called: the solution has nothing to differentiate, or the condition closes over a tensor
            that is being differentiated; or a function that was compiled with the solution in it is differentiated.
        StructureError, ShapeError: when called: what the condition returns does not look like the solution.
        ConvergenceError: when called or differentiated: a tolerance was not reached. In a compiled function, which
            cannot raise, what depends on it is NaN.

    Source:
        Blondel et al.: Efficient and Modular Implicit Differentiation, 2022. Bai, Kolter, Koltun: Deep Equilibrium
        Models, 2019. Lorraine, Vicol, Duvenaud: Optimizing Millions of Hyperparameters by Implicit Differentiation,
        2020 ("neumann" for stationary points).

    Example:
        >>> import torch, purenn as pn
        >>> def newton(a):
        ...     x = torch.ones_like(a)
        ...     for _ in range(20):
        ...         x = (x + a / x) / 2
        ...     return x
        >>> root = pn.implicit(newton, root=lambda x, a: x * x - a)
        >>> pn.grad(root)(torch.tensor(4.0)), pn.grad(pn.grad(root))(torch.tensor(4.0))
        (tensor(0.2500), tensor(-0.0312))
    """
    given: dict[str, Callable[..., Any] | None] = {
        "stationary": stationary,
        "fixed_point": fixed_point,
        "root": root,
    }
    conditions = [(kind, fn) for kind, fn in given.items() if fn is not None]
    if len(conditions) != 1:
        got = " and ".join(kind for kind, _ in conditions) or "none"
        raise ArgumentError(f"implicit: give one condition: stationary, fixed_point or root, got {got}.")
    if solution_tolerance is not None and not solution_tolerance >= 0:
        raise ArgumentError(f"implicit: solution_tolerance must not be negative, got {solution_tolerance}.")
    kind, condition = conditions[0]
    method = _SOLVERS[kind] if solver is None else solver
    linear = LinearSolver(method, tolerance, iterations, damping, step).checked()
    setting = Setting(solve, kind, condition, linear, solution_tolerance, has_aux)

    @functools.wraps(solve)
    def solved(*args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, Call(setting, args, dict(kwargs)).run())

    return solved
