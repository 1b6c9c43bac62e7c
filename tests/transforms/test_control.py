"""Choices and loops that depend on values: eager, batched, compiled, differentiated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, GradientError, StructureError

DOUBLE = torch.float64
BACKENDS = ["eager", "inductor"]


def _points(device: torch.device) -> Tensor:
    return torch.tensor([[0.5, -0.2, 0.4], [-0.9, 0.1, 0.2], [0.3, 0.3, -0.1]], dtype=DOUBLE, device=device)


def _agree(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def _chosen(x: Tensor) -> Tensor:
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE, device=x.device)
    parts = pn.cond(
        x.sum() > 0, lambda x: {"y": (x * weight).sin(), "n": x}, lambda x: {"y": x.exp(), "n": x * x[0]}, x
    )
    return (parts["y"].pow(3) * parts["n"]).sum()


DERIVATIVES: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]] = {
    "value": lambda f: f,
    "grad": pn.grad,
    "jvp": lambda f: lambda x: torch.stack(pn.jvp(f, (x,), (x.cos(),))),
    "hessian": pn.hessian,
    "grad of grad": lambda f: pn.grad(lambda x: pn.grad(f)(x).square().sum()),
}


@pytest.mark.parametrize("name", list(DERIVATIVES))
@pytest.mark.parametrize("jitted", [False, True])
def test_cond(device: torch.device, name: str, jitted: bool) -> None:
    """One branch, with its derivatives; under vmap the branch of each example; the same under jit."""
    transformed = DERIVATIVES[name](_chosen)
    by_hand = DERIVATIVES[name](
        lambda x: _chosen(x)
    )  # outside of vmap and jit the chosen branch simply runs: checked in test_cond_in_eager
    expected = torch.stack([by_hand(x) for x in _points(device)])
    batched, one = pn.vmap(transformed), transformed
    if jitted:
        batched, one = pn.jit(batched, backend="eager"), pn.jit(one, backend="eager")
    _agree(batched(_points(device)), expected)
    for x, row in zip(_points(device), expected, strict=True):
        _agree(one(x), row)


def test_cond_in_eager(device: torch.device) -> None:
    """Only the chosen function runs, for a bool and for a tensor, and its gradient is its own."""

    def never(x: Tensor) -> Tensor:
        raise AssertionError

    x = torch.tensor(4.0, dtype=DOUBLE, device=device)
    assert pn.cond(True, torch.sqrt, never, x) == 2
    assert pn.cond(x < 0, never, torch.sqrt, x) == 2
    assert pn.grad(lambda x: pn.cond(x > 0, torch.sqrt, never, x))(x) == 0.25


def test_cond_runs_one_branch_under_jit(device: torch.device) -> None:
    """The compiled function decides at run time, and the gradient of the other branch does not spoil anything."""
    f = pn.jit(pn.grad(lambda x: pn.cond(x > 0, torch.sqrt, lambda x: x * 3, x)), backend="eager")
    assert f(torch.tensor(4.0, device=device)) == 0.25
    assert f(torch.tensor(-4.0, device=device)) == 3
    assert f.cache_info().misses == 1
    assert "purenn.cond" in str(f.lower(torch.tensor(4.0, device=device)))


def test_cond_differentiates_what_it_closes_over(device: torch.device) -> None:
    """Gradients reach the tensors of the surrounding function, in either branch, also per example."""

    def f(w: Tensor, x: Tensor) -> Tensor:
        return pn.cond(x.sum() > 0, lambda: (x * w).sin().sum(), lambda: (w**2).sum())

    w, xs = torch.tensor([0.3, 0.7, -0.5], dtype=DOUBLE, device=device), _points(device)
    expected = torch.stack([x * (x * w).cos() if x.sum() > 0 else 2 * w for x in xs])
    many = pn.vmap(pn.grad(f), in_dims=(None, 0))
    _agree(many(w, xs), expected)
    _agree(pn.jit(many, backend="eager")(w, xs), expected)
    for x, row in zip(xs, expected, strict=True):
        _agree(pn.jit(pn.grad(f), backend="eager")(w, x), row)


def test_cond_and_plain_autograd(device: torch.device) -> None:
    """`backward` through the compiled function."""
    x = torch.tensor(4.0, dtype=DOUBLE, device=device, requires_grad=True)
    y = pn.jit(lambda x: pn.cond(x > 0, torch.sqrt, torch.cos, x), backend="aot_eager")(x)
    assert torch.autograd.grad(y, x)[0] == 0.25


def test_cond_inside_torch_compile(device: torch.device) -> None:
    """torch.compile without graph breaks: both branches, selected."""
    compiled = torch.compile(lambda x: pn.cond(x.sum() > 0, torch.sin, torch.cos, x), fullgraph=True, backend="eager")
    for x in _points(device):
        _agree(compiled(x), x.sin() if x.sum() > 0 else x.cos())


def _grow(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.tensor(1.5, dtype=DOUBLE, device=x.device)
    return pn.while_loop(
        lambda s: s[0].abs().sum() < 20, lambda s: (s[0] * scale + 0.1, s[1] + 1), (x, torch.tensor(0, device=x.device))
    )


def _grow_by_hand(x: Tensor) -> tuple[Tensor, Tensor]:
    count = 0
    while x.abs().sum() < 20:
        x, count = x * 1.5 + 0.1, count + 1
    return x, torch.tensor(count, device=x.device)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_while_loop(device: torch.device, backend: str | None) -> None:
    """The plain loop; under vmap each example stops by itself."""
    xs = _points(device)
    expected = [_grow_by_hand(x) for x in xs]
    one, many = _grow, pn.vmap(_grow)
    if backend is not None:
        one, many = pn.jit(one, backend=backend), pn.jit(many, backend=backend)
    for x, pair in zip(xs, expected, strict=True):
        _agree(one(x), pair)
    values, counts = zip(*expected, strict=True)
    assert len({int(count) for count in counts}) > 1
    _agree(many(xs), (torch.stack(values), torch.stack(counts)))


def test_while_loop_derivatives(device: torch.device) -> None:
    """Both modes in eager, forward mode under jit, per example as well."""
    xs = _points(device)

    def f(x: Tensor) -> Tensor:
        return _grow(x)[0].square().sum()

    def by_hand(x: Tensor) -> Tensor:
        return pn.grad(lambda x: _grow_by_hand(x)[0].square().sum())(x)

    expected = torch.stack([by_hand(x) for x in xs])
    for x, row in zip(xs, expected, strict=True):
        _agree(pn.grad(f)(x), row)
        _agree(pn.jacfwd(f)(x), row)
        _agree(pn.jit(pn.jacfwd(f), backend="eager")(x), row)
    _agree(pn.vmap(pn.grad(f))(xs), expected)
    _agree(pn.vmap(pn.jacfwd(f))(xs), expected)
    _agree(pn.jit(pn.vmap(pn.jacfwd(f)), backend="eager")(xs), expected)


def test_fori_loop(device: torch.device) -> None:
    """Python bounds and tensor bounds, eager, compiled and per example."""
    xs = _points(device)

    def f(n: int | Tensor, x: Tensor) -> Tensor:
        return pn.fori_loop(0, n, lambda i, x: x.sin() * (i + 1), x)

    def by_hand(n: int, x: Tensor) -> Tensor:
        for i in range(n):
            x = x.sin() * (i + 1)
        return x

    ns = torch.tensor([0, 2, 5], device=device)
    expected = torch.stack([by_hand(int(n), x) for n, x in zip(ns, xs, strict=True)])
    for many in (pn.vmap(f), pn.jit(pn.vmap(f), backend="eager")):
        _agree(many(ns, xs), expected)
    for run in (f, pn.jit(f, backend="eager", static_argnames="n")):
        _agree(run(5, xs), by_hand(5, xs))
        _agree(run(0, xs), xs)
    gradient = pn.grad(lambda x: f(3, x).sum())
    _agree(gradient(xs), pn.grad(lambda x: by_hand(3, x).sum())(xs))
    _agree(pn.jit(gradient, backend="eager")(xs), gradient(xs))
    assert pn.fori_loop(3, 1, lambda i, x: x * 2, torch.tensor(1, device=device)) == 1


def test_errors(device: torch.device) -> None:
    """Wrong use says what was wrong and what to do; what can be seen in a trace only is seen there."""
    x = torch.ones(3, device=device)

    def text(kind: type[Exception], call: Callable[[], object]) -> str:
        with pytest.raises(kind) as error:
            call()
        return str(error.value)

    several = (
        "must have one element, got bool[3]. For one decision for each example use pn.vmap, for a choice for each "
        "element torch.where."
    )
    assert text(ArgumentError, lambda: pn.cond(x > 0, torch.sin, torch.cos, x)) == f"cond: the predicate {several}"
    assert text(ArgumentError, lambda: pn.while_loop(lambda x: x > 0, torch.sin, x)) == (
        f"while_loop: what the test returns {several}"
    )
    assert text(StructureError, lambda: pn.while_loop(lambda x: x.sum() > 0, lambda x: x[:2], x)) == (
        "while_loop: the carry that the body returns must look like the one that it gets, but the tree itself is "
        "f32[3] there and f32[2] here."
    )
    assert text(StructureError, lambda: pn.while_loop(lambda n: n < 3, lambda n: n + 1, 0)) == (
        "while_loop: the carry must be a tree of tensors, but the tree itself is 0: what changes from step to step "
        "cannot be a part of the structure. Use torch.tensor(0)."
    )
    assert text(ArgumentError, lambda: pn.cond(None, torch.sin, torch.cos, x)) == (  # pyright: ignore[reportArgumentType]
        "cond: the predicate must be a bool or a tensor with one element, got None."
    )
    assert text(ArgumentError, lambda: pn.while_loop(lambda x: (x > 2,), lambda x: x + 1, x[0])) == (  # pyright: ignore
        "while_loop: what the test returns must be a bool or a tensor with one element, got (tensor(False),)."
    )
    assert text(StructureError, lambda: pn.fori_loop(0, 2, lambda i, x: (x, i), x)) == (  # pyright: ignore
        "fori_loop: the carry that the body returns must have the structure of the one that it gets; they differ at "
        "the top: a Tensor against a tuple."
    )
    for bounds, wrong in (
        ((0, 1.5), "upper must be a whole number or an integer tensor, got 1.5"),
        ((x[0], 3), "lower must be a whole number or an integer tensor, got f32[]"),
    ):
        assert text(ArgumentError, lambda bounds=bounds: pn.fori_loop(*bounds, lambda _, x: x, x)) == (
            f"fori_loop: {wrong}."
        )
    for transformed in (pn.vmap, lambda f: pn.jit(f, backend="eager")):
        data = torch.ones(2, 3, device=device) if transformed is pn.vmap else x
        different = transformed(lambda x: pn.cond(x.sum() > 0, lambda x: x, lambda x: x[:2], x))
        assert text(StructureError, lambda f=different, x=data: f(x)) == (
            "cond: the result of the second function must look like that of the first, but the tree itself is f32[3] "
            "there and f32[2] here."
        )
        number = transformed(lambda x: pn.cond(x.sum() > 0, lambda x: (x, 1), lambda x: (x, 2), x)[0])
        assert text(StructureError, lambda f=number, x=data: f(x)) == (
            "cond: the functions must return tensors, but '1' is 1: return it as a tensor, or not at all."
        )
    refused = pn.jit(pn.grad(lambda x: _grow(x)[0].sum()), backend="eager")
    assert text(GradientError, lambda: refused(x.double())) == (
        "while_loop: a loop whose number of steps is not known beforehand has no reverse-mode gradient under pn.jit. "
        "Use pn.scan or pn.fori_loop with a fixed number of steps (and torch.where to stop early), pn.jvp, or do not "
        "jit this function: in eager the loop is plain Python."
    )
