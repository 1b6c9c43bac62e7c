"""`pn.implicit`: derivatives of fixed points and stationary points against closed forms and unrolled loops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, ConvergenceError, GradientError, ShapeError, StructureError
from purenn.layers import Linear, linear

DOUBLE = torch.float64


def data(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A penalty, inputs [7, 3] and targets [7]."""
    inputs = pn.random.normal(pn.random.key(0), (7, 3), dtype=DOUBLE)
    targets = pn.random.normal(pn.random.key(1), (7,), dtype=DOUBLE)
    return tuple(x.to(device) for x in (torch.tensor(0.7, dtype=DOUBLE), inputs, targets))


def ridge(penalty: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The closed form; the inverse, since torch's forward mode over forward mode is wrong for its linear solve."""
    gram = x.T @ x + penalty * torch.eye(3, dtype=x.dtype, device=x.device)
    return {"w": torch.linalg.inv(gram) @ (x.T @ y)}


def ridge_objective(p: dict[str, Tensor], penalty: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (x @ p["w"] - y).square().sum() + 0.5 * penalty * p["w"].square().sum()


def ridge_step(p: dict[str, Tensor], penalty: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return pn.tree.map(lambda w, g: w - 0.05 * g, p, pn.grad(ridge_objective)(p, penalty, x, y))


def ridge_equations(p: dict[str, Tensor], penalty: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"w": x.T @ (x @ p["w"] - y) + penalty * p["w"]}


CONDITIONS: dict[str, dict[str, Any]] = {
    "stationary": {"stationary": ridge_objective},
    "stationary neumann": {"stationary": ridge_objective, "solver": "neumann", "step": 0.08, "iterations": 5000},
    "stationary dense": {"stationary": ridge_objective, "solver": "dense"},
    "fixed_point": {"fixed_point": ridge_step},
    "fixed_point neumann": {"fixed_point": ridge_step, "solver": "neumann", "iterations": 5000},
    "root": {"root": ridge_equations},
    "root dense": {"root": ridge_equations, "solver": "dense"},
    "root of a gradient": {"root": pn.grad(ridge_objective)},
}

Loss = Callable[..., Tensor]


def _squares(trees: Any) -> Tensor:
    return torch.stack([leaf.square().sum() for leaf in pn.tree.leaves(trees)]).sum()


def _many(penalty: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.stack([penalty, 2 * penalty]), x, torch.stack([y, y + 1])


def _moved(f: Loss, penalty: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return pn.jvp(lambda penalty, x: f(penalty, x, y), (penalty, x), (torch.ones_like(penalty), x.cos()))[1]


TRANSFORMED: dict[str, Callable[[Loss, Tensor, Tensor, Tensor], Any]] = {
    "grad": lambda f, *a: pn.grad(f, (0, 1, 2))(*a),
    "grad of grad": lambda f, *a: pn.grad(lambda *a: _squares(pn.grad(f, (0, 1, 2))(*a)), (0, 1, 2))(*a),
    "jvp": _moved,
    "jvp of jvp": lambda f, *a: _moved(lambda *a: _moved(f, *a), *a),
    "grad of jvp": lambda f, *a: pn.grad(lambda *a: _moved(f, *a), (0, 1))(*a),
    "hessian": lambda f, *a: pn.hessian(f, (0, 1))(*a),
    "jacfwd": lambda f, *a: pn.jacfwd(f, (0, 1))(*a),
    "vmap": lambda f, *a: pn.vmap(f, (0, None, 0))(*_many(*a)),
    "vmap of grad": lambda f, *a: pn.vmap(pn.grad(f, (0, 1)), (0, None, 0))(*_many(*a)),
    "grad of vmap": lambda f, *a: pn.grad(lambda *a: pn.vmap(f, (0, None, 0))(*a).sum(), (0, 1))(*_many(*a)),
    "jvp of vmap": lambda f, *a: _moved(pn.vmap(f, (0, None, 0)), *_many(*a)),
    "jvp of vmap of jvp": lambda f, *a: _moved(pn.vmap(lambda *a: _moved(f, *a), (0, None, 0)), *_many(*a)),
    "vmap of hessian": lambda f, *a: pn.vmap(pn.hessian(f, (0, 1)), (0, None, 0))(*_many(*a)),
    "grad of vmap of grad": lambda f, *a: pn.grad(
        lambda *a: _squares(pn.vmap(pn.grad(f, (0, 1)), (0, None, 0))(*a)), (0, 1)
    )(*_many(*a)),
    "jit of grad": lambda f, *a: pn.jit(pn.grad(f, (0, 1)), backend="aot_eager")(*a),
    "jit of vmap of grad": lambda f, *a: pn.jit(pn.vmap(pn.grad(f, (0, 1)), (0, None, 0)), backend="aot_eager")(
        *_many(*a)
    ),
    "jit of hessian": lambda f, *a: pn.jit(pn.hessian(f, (0, 1)), backend="aot_eager")(*a),
}


def cubes(solve: Callable[..., dict[str, Tensor]]) -> Loss:
    """A function of the solution that is not linear."""
    return lambda *args: (solve(*args)["w"] ** 3).sum()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_ridge_regression(device: torch.device, condition: str) -> None:
    """Every condition and solver gives the value, the gradient and the second derivative of the closed form."""
    args, solve = data(device), pn.implicit(ridge, **CONDITIONS[condition])
    assert pn.tree.equal(solve(*args), ridge(*args))
    for name in ("grad", "grad of grad", "jvp"):
        right = TRANSFORMED[name](cubes(ridge), *args)
        assert pn.tree.allclose(TRANSFORMED[name](cubes(solve), *args), right, rtol=1e-8, atol=1e-9), name


def refused_by_old_compilers(name: str) -> Any:
    """In torch 2.11 they lose the strides of forward derivatives of torch.linalg.solve, of which `ridge` is made."""
    old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
    return pytest.param(name, marks=pytest.mark.skipif(old, reason="torch's compilers lose strides"))


@pytest.mark.parametrize(
    "name", [refused_by_old_compilers(name) if name == "jit of hessian" else name for name in TRANSFORMED]
)
def test_under_every_transformation(device: torch.device, name: str) -> None:
    """Derivatives to the second order, batched, nested and compiled, are those of the closed form."""
    args = data(device)
    right = TRANSFORMED[name](cubes(ridge), *args)
    for condition in ("stationary",) if name.startswith("jit") else ("stationary", "fixed_point"):
        solve = pn.implicit(ridge, **CONDITIONS[condition])
        assert pn.tree.allclose(TRANSFORMED[name](cubes(solve), *args), right, rtol=1e-8, atol=1e-8), condition


def deep_step(z: Tensor, p: Linear, x: Tensor) -> Tensor:
    return torch.tanh(linear(p, z) + x)


def deep(p: Linear, x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(150):
        z = deep_step(z, p, x)
    return z


def contraction(device: torch.device) -> tuple[Linear, Tensor]:
    """A layer whose iteration converges, and inputs [5, 4]."""
    p = pn.tree.to(Linear.init(pn.random.key(0), 4, 4, dtype=DOUBLE), device)
    return pn.replace(p, weight=p.weight * 0.5), pn.random.normal(pn.random.key(1), (5, 4), dtype=DOUBLE).to(device)


@pytest.mark.parametrize("solver", ["bicgstab", "neumann", "dense"])
def test_deep_equilibrium(device: torch.device, solver: str) -> None:
    """Gradients of a deep equilibrium layer, a whole container, are those of the unrolled loop, batched or not."""
    p, x = contraction(device)
    layer = pn.implicit(deep, fixed_point=deep_step, solver=solver)

    def value(layer: Any, batched: bool) -> Any:
        apply = pn.vmap(layer, (None, 0)) if batched else layer
        return pn.grad(lambda p, x: apply(p, x).square().sum(), (0, 1))(p, x)

    right = value(deep, False)
    for batched in (False, True):
        assert pn.tree.allclose(value(layer, batched), right, rtol=1e-8, atol=1e-9)
    linear_fixed_point = pn.implicit(
        lambda p: torch.linalg.solve(torch.eye(4, dtype=DOUBLE, device=device) - p.weight, p.bias),
        fixed_point=lambda z, p: linear(p, z),
        solver=solver,
    )
    inverse = torch.linalg.inv(torch.eye(4, dtype=DOUBLE, device=device) - p.weight)
    gradient = pn.grad(lambda p: linear_fixed_point(p).sum())(p)
    assert torch.allclose(gradient.bias, inverse.sum(0), rtol=1e-9, atol=1e-9)
    assert torch.allclose(gradient.weight, torch.outer(inverse.sum(0), inverse @ p.bias), rtol=1e-8, atol=1e-9)


def test_forward_solver_is_not_differentiated(device: torch.device) -> None:
    """The solver may do what has no derivative; a first guess and an auxiliary output have the derivative zero."""

    def newton(a: Tensor, guess: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = guess.detach().clone().requires_grad_()
        for _ in range(30):
            x = (x - (x * x - a) / (2 * x)).detach()
        return x, {"steps": torch.tensor(30), "last": x * 1}

    def equation(x: Tensor, a: Tensor, guess: Tensor) -> Tensor:
        return x * x - a

    root = pn.implicit(newton, root=equation, has_aux=True)
    a, guess = torch.tensor(4.0, dtype=DOUBLE, device=device), torch.tensor(1.0, dtype=DOUBLE, device=device)
    x, aux = root(a, guess)
    assert float(x) == 2
    assert int(aux["steps"]) == 30
    of_a, of_guess = pn.grad(lambda a, guess: root(a, guess)[0] + root(a, guess)[1]["last"], (0, 1))(a, guess)
    assert float(of_a) == pytest.approx(0.25, abs=1e-12)
    assert float(of_guess) == 0
    third = pn.grad(pn.grad(pn.grad(lambda a: root(a, guess=guess)[0])))(a)
    assert float(third) == pytest.approx(3 / 8 * 4**-2.5, abs=1e-12)


def test_solutions_with_buffers(device: torch.device) -> None:
    """Of a solution that is a model only what is trained is defined by the condition."""

    @pn.container
    class Model:
        w: Tensor
        frozen: Tensor
        scale: Tensor = pn.buffer()
        steps: Tensor = pn.buffer()

    def solve(a: Tensor) -> Model:
        number = torch.tensor(3, device=device)
        return pn.tree.freeze(Model(a / 2, a * 5, torch.full_like(a, 2.0), number), "frozen")

    objective = pn.implicit(solve, stationary=lambda p, a: (p.w * p.scale - a).square().sum())
    a = torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device)
    loss = lambda a: (objective(a).w * objective(a).scale + objective(a).frozen).sum()  # noqa: E731
    assert torch.allclose(pn.grad(loss)(a), torch.ones_like(a), rtol=0, atol=1e-12)
    assert torch.allclose(pn.jvp(loss, (a,), (a,))[1], a.sum(), rtol=0, atol=1e-12)
    batched = pn.vmap(pn.grad(loss))(torch.stack([a, 2 * a]))
    assert torch.allclose(batched, torch.ones_like(batched), rtol=0, atol=1e-12)


def test_plain_autograd_and_compile(device: torch.device) -> None:
    """`backward()` works, and torch.compile runs it between compiled parts."""
    args = data(device)
    solve = cubes(pn.implicit(ridge, stationary=ridge_objective))
    right = pn.grad(cubes(ridge))(*args)
    penalty = args[0].clone().requires_grad_()
    solve(penalty, *args[1:]).backward()
    assert penalty.grad is not None
    assert torch.allclose(penalty.grad, right, rtol=1e-9, atol=0)
    torch.compiler.reset()
    compiled = torch.compile(lambda *args: solve(*args) * 2, backend="eager")
    assert torch.equal(compiled(*args), 2 * solve(*args))


def test_truncated_and_damped_solvers(device: torch.device) -> None:
    """With a tolerance of 0 the iterations are counted; a damping is added to the matrix."""
    args = data(device)
    penalty, x, y = args
    w, hessian = ridge(*args)["w"], x.T @ x + penalty * torch.eye(3, dtype=DOUBLE, device=device)

    def gradient(**options: Any) -> Tensor:
        solve = pn.implicit(ridge, stationary=ridge_objective, **options)
        return pn.grad(lambda penalty: solve(penalty, x, y)["w"].sum())(penalty)

    series, right = torch.zeros_like(w), torch.ones_like(w)
    for _ in range(4):
        series, right = series + 0.01 * right, right - 0.01 * (hessian @ right)
    truncated = gradient(solver="neumann", step=0.01, tolerance=0, iterations=4)
    assert torch.allclose(truncated, -(series @ w), rtol=1e-12, atol=0)
    identity = torch.eye(3, dtype=DOUBLE, device=device)
    damped = torch.linalg.solve(hessian + 5 * identity, torch.ones_like(w))
    for solver in ("cg", "bicgstab", "dense"):
        assert torch.allclose(gradient(solver=solver, damping=5.0), -(damped @ w), rtol=1e-9, atol=0)


def test_convergence_errors(device: torch.device) -> None:
    """What has not converged is an error, batched as well, and NaN where no error can be raised."""
    args = data(device)
    slow = cubes(pn.implicit(ridge, stationary=ridge_objective, iterations=1))
    expected = (
        "implicit: 'cg' has not solved the linear system of the derivative within 1 iterations: the residual is "
        "7.7e-02 of the right-hand side, and tolerance=1e-10. Give more iterations, a damping or another solver, or "
        "tolerance=0 to take what the iterations give."
    )
    with pytest.raises(ConvergenceError) as error:
        pn.grad(slow)(*args)
    assert str(error.value) == expected
    with pytest.raises(ConvergenceError):
        pn.vmap(pn.grad(slow), (0, None, 0))(*_many(*args))
    assert pn.jit(pn.grad(slow), backend="aot_eager")(*args).isnan()
    flat = pn.implicit(lambda a: a * 1, root=lambda x, a: 0 * x, solver="dense")
    with pytest.raises(ConvergenceError) as error:
        pn.grad(lambda a: flat(a).sum())(args[2])
    assert str(error.value) == (
        "implicit: the linear system of the derivative has no solution (its residual is nan of the right-hand side): "
        "the solution is not isolated. Give a damping."
    )
    wrong = pn.implicit(lambda a: a + 1, root=lambda x, a: x - a, solution_tolerance=1e-3)
    with pytest.raises(ConvergenceError) as error:
        wrong(args[2])
    assert str(error.value) == (
        "implicit: what the solver returned is no solution: the root mean square of the root condition's equations is "
        "1.0e+00 there, and solution_tolerance=0.001."
    )
    assert pn.jit(wrong, backend="aot_eager")(args[2]).isnan().all()
    right = pn.implicit(lambda a: a + 1, root=lambda x, a: x - a, solution_tolerance=2.0)
    assert torch.equal(pn.vmap(right)(args[1]), args[1] + 1)


@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")  # what traced the graph says beside the error
def test_compiled_functions_are_not_differentiated(device: torch.device) -> None:
    """A gradient from outside of a compiled function, which would be wrong, is an error; its value is right."""
    args = data(device)
    compiled = pn.jit(cubes(pn.implicit(ridge, stationary=ridge_objective)), backend="aot_eager")
    assert torch.allclose(compiled(*args), cubes(ridge)(*args), rtol=1e-12, atol=0)
    assert torch.allclose(pn.vmap(compiled, (0, None, 0))(*_many(*args))[0], compiled(*args), rtol=1e-12, atol=0)
    with pytest.raises(GradientError) as error:
        pn.grad(compiled)(*args)
    assert str(error.value) == (
        "implicit: a compiled function that uses this one is differentiated from outside, but the rule is not in the "
        "compiled graph: compile the gradient instead, pn.jit(pn.grad(f))."
    )


CLOSED = (
    "implicit: solve or the root condition closes over a tensor that is being {}, which the derivative cannot see: "
    "make it an argument of both, or detach it if it is a constant."
)


@pytest.mark.parametrize(
    ("what", "transform"),
    [
        ("differentiated", lambda f, b: pn.grad(f)(b)),
        ("differentiated", lambda f, b: torch.func.grad(f)(b)),
        ("differentiated", lambda f, b: pn.jvp(f, (b,), (b,))),
        ("differentiated", lambda f, b: f(b.clone().requires_grad_())),
        ("differentiated", lambda f, b: pn.vmap(pn.grad(f))(torch.stack([b, b]))),
        ("differentiated", lambda f, b: pn.jvp(lambda b: pn.vmap(lambda _: f(b))(b), (b,), (b,))),
        ("differentiated", lambda f, b: pn.jvp(lambda b: pn.grad(lambda x: f(b) * x.sum())(b), (b,), (b,))),
        ("batched", lambda f, b: pn.vmap(f)(torch.stack([b, b]))),
    ],
)
def test_closures_are_refused(device: torch.device, what: str, transform: Any) -> None:
    """A closed-over tensor is a constant; if it is differentiated or batched, that is an error."""
    a = torch.ones(3, dtype=DOUBLE, device=device)

    def closed(b: Tensor, *, in_solve: bool) -> Tensor:
        solve = pn.implicit(lambda a: a * (b if in_solve else 1), root=lambda x, a: x - a * b)
        return solve(a).sum()

    for in_solve in (False, True):
        with pytest.raises(GradientError) as error:
            transform(lambda b, in_solve=in_solve: closed(b, in_solve=in_solve), a * 2)
        assert str(error.value) in (CLOSED.format(what), CLOSED.format("batched"))
    assert closed(a * 2, in_solve=True) == 6
    solve = pn.implicit(lambda a: a * 2, root=lambda x, a: x - a * (a * 2).detach())
    assert torch.equal(pn.grad(lambda b: solve(a).sum() * b.sum())(a), torch.full_like(a, 6))


def test_errors(device: torch.device) -> None:
    """Wrong options, solutions and conditions are named."""
    a = torch.ones(3, device=device)

    def raised(kind: type[Exception], call: Callable[[], Any]) -> str:
        with pytest.raises(kind) as error:
            call()
        return str(error.value)

    assert raised(ArgumentError, lambda: pn.implicit(torch.sin)) == (
        "implicit: give one condition: stationary, fixed_point or root, got none."
    )
    assert raised(ArgumentError, lambda: pn.implicit(torch.sin, root=torch.sin, fixed_point=torch.sin)) == (
        "implicit: give one condition: stationary, fixed_point or root, got fixed_point and root."
    )
    for options, expected in (
        ({"solver": "gmres"}, "solver must be one of 'cg', 'bicgstab', 'neumann', 'dense', got 'gmres'."),
        ({"tolerance": -1.0}, "tolerance must not be negative, got -1.0."),
        ({"damping": -1.0}, "damping must not be negative, got -1.0."),
        ({"iterations": 0}, "iterations must be at least 1, got 0."),
        ({"step": 0.0}, "step must be positive, got 0.0."),
        ({"solution_tolerance": -1.0}, "solution_tolerance must not be negative, got -1.0."),
    ):
        options: Any
        assert raised(ArgumentError, lambda o=options: pn.implicit(torch.sin, root=torch.sin, **o)) == (
            f"implicit: {expected}"
        )
    same = lambda x, a: x  # noqa: E731
    assert raised(GradientError, lambda: pn.implicit(lambda a: a.int(), root=same)(a)) == (
        "implicit: the solution has nothing to differentiate: no leaf of what `solve` returns is a floating-point "
        "parameter that is not frozen."
    )
    assert raised(GradientError, lambda: pn.implicit(lambda a: {"z": a + 0j}, root=same)(a)) == (
        "implicit: 'z' of the solution is c64[3], but equations are of real numbers: solve for torch.view_as_real(z)."
    )
    assert raised(GradientError, lambda: pn.implicit(lambda a: a * 1, stationary=same)(a)) == (
        "implicit, stationary: the function must return a scalar tensor, got f32[3]. Reduce it with .mean() or .sum(), "
        "or use pn.jacrev for the derivatives of every element."
    )
    assert raised(StructureError, lambda: pn.implicit(lambda a: {"x": a * 1}, root=lambda x, a: [a])(a)) == (
        "implicit, solution and root condition: the trees differ at the top: a dict against a list. Both must have the "
        "same classes, absent children and static fields."
    )
    short = pn.implicit(lambda a: {"x": a * 1}, fixed_point=lambda x, a: {"x": a[:2]})
    assert raised(ShapeError, lambda: short(a)) == (
        "implicit: the fixed_point condition must return what looks like the solution, but 'x' is f32[3] there and "
        "f32[2] here."
    )
    assert raised(GradientError, lambda: pn.implicit(lambda a: a * 1, root=same, has_aux=True)(a)) == (
        "implicit: with has_aux=True the function must return a pair (value, auxiliary), got a Tensor."
    )
