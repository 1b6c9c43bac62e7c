"""Derivatives of what `pn.jit` has compiled: of views, of loops within loops, and where a rule would be lost."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import GradientError, TraceError

DOUBLE = torch.float64
ENGINE = pytest.mark.filterwarnings("ignore:(Error detected in|\\s*Previous calculation):UserWarning")


def matrix(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).to(device)


def by_rows(x: Tensor) -> Tensor:
    return torch.cat([row.sin() for row in x.split(1)])


def along(x: Tensor, tangent: Tensor) -> Tensor:
    return pn.jvp(by_rows, (x,), (tangent,))[1]


ON_VIEWS: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]] = {
    "a row less": (along, lambda m: (m[1:], m[:3].clone())),
    "transposed": (along, lambda m: (m.T, m.T.clone())),
    "a view that is made inside": (lambda m, t: along(m[1:], t), lambda m: (m, m[:3].clone())),
    "jacfwd": (pn.jacfwd(by_rows), lambda m: (m[1:],)),
    "hessian": (pn.hessian(lambda x: by_rows(x).sum()), lambda m: (m[1:],)),
    "tangents of a batch": (pn.vmap(along, (None, 0)), lambda m: (m[1:], torch.stack([m[:3], m[1:]]))),
    "points of a batch": (pn.vmap(along, (0, None)), lambda m: (torch.stack([m, 2 * m])[:, 1:], m[:3].clone())),
    "both": (pn.vmap(along), lambda m: (torch.stack([m, 2 * m])[:, 1:], torch.stack([m[:3], m[1:]]))),
    "expanded": (along, lambda m: (m[:1].expand(3, 4), m[1:].clone())),
    "jacfwd of expanded": (pn.jacfwd(by_rows), lambda m: (m[:1].expand(3, 4),)),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ON_VIEWS)
def test_forward_mode_of_views(device: torch.device, name: str, backend: str) -> None:
    """Forward mode of a view that is taken to pieces gives what it gives for a tensor of its own."""
    fn, arguments = ON_VIEWS[name]
    args = arguments(matrix(device, 4, 4))
    expected = fn(*[arg.clone(memory_format=torch.contiguous_format) for arg in args])
    torch.testing.assert_close(fn(*args), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pn.jit(fn, backend=backend)(*args), expected, rtol=0, atol=1e-12)


def twice(x: Tensor) -> Tensor:
    return pn.scan(lambda c, _: (2 * c.sin(), None), x, None, length=2)[0]


def recomputed(x: Tensor) -> Tensor:
    return pn.scan(lambda c, y: (2 * c.sin() + y, c * y), x, torch.stack([x, x.cos()]), remat=True)[1].sum(0)


def chosen(x: Tensor) -> Tensor:
    return pn.cond(x.sum() > 0.7, torch.sin, lambda x: 3 * x * x, x)


def looped(inner: Callable[[Tensor], Tensor], times: int = 2) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        return pn.scan(lambda c, _: (inner(c) + 0.1 * c, None), x, None, length=times)[0]

    return run


LOOPS = {
    "loop in loop": looped(twice),
    "in a loop": looped(looped(twice)),
    "with remat": looped(recomputed),
    "choice in loop": looped(chosen, 3),
    "loop in choice": lambda x: pn.cond(x.sum() > 0.3, lambda x: pn.cond(x.sum() > 0.4, twice, torch.exp, x), twice, x),
}
TRANSFORMED = {
    "grad": lambda f: pn.grad(lambda x: f(x).sum()),
    "hessian": lambda f: pn.hessian(lambda x: f(x).sum()),
    "jvp": lambda f: lambda x: pn.jvp(f, (x,), (x.cos(),))[1],
    "vmap(grad)": lambda f: lambda x: pn.vmap(pn.grad(lambda x: f(x).sum()))(torch.stack([x, -x, 2 * x])),
}


@pytest.mark.parametrize(
    ("name", "transformation"), [(a, b) for a in LOOPS for b in TRANSFORMED if (a, b) != ("in a loop", "hessian")]
)
def test_loops_in_loops(device: torch.device, name: str, transformation: str) -> None:
    """A compiled loop or branch in the body of another one is differentiated and batched as in eager."""
    fn = TRANSFORMED[transformation](LOOPS[name])
    x = torch.tensor([0.5, 0.2], dtype=DOUBLE, device=device)
    torch.testing.assert_close(pn.jit(fn, backend="eager")(x), fn(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", LOOPS)
def test_loops_in_loops_from_outside(device: torch.device, name: str, backend: str) -> None:
    """The same for a gradient that is taken of the compiled function."""
    x = torch.tensor([0.5, 0.2], dtype=DOUBLE, device=device)
    f = lambda x: LOOPS[name](x).square().sum()  # noqa: E731
    torch.testing.assert_close(pn.grad(pn.jit(f, backend=backend))(x), pn.grad(f)(x), rtol=1e-10, atol=1e-10)


def test_while_loops_in_and_around_loops(device: torch.device) -> None:
    """A while loop in a scan, and a scan in a while loop, have their tangents and batched forms."""
    x = torch.tensor([0.5, 0.2], dtype=DOUBLE, device=device)
    grow = lambda x: pn.while_loop(lambda c: c.sum() < 2, lambda c: 1.5 * c, x)  # noqa: E731
    around = lambda x: pn.while_loop(lambda c: c.sum() < 20, looped(lambda c: 2 * c), x)  # noqa: E731
    for f in (looped(lambda c: grow(c) * 0.5), around):
        for fn in (TRANSFORMED["jvp"](f), lambda x, f=f: pn.vmap(f)(torch.stack([x, 2 * x]))):
            torch.testing.assert_close(pn.jit(fn, backend="eager")(x), fn(x), rtol=1e-10, atol=1e-10)


BODIES = {
    "scan": lambda g, x: pn.scan(lambda c, _: (c + g(), None), x, None, length=2)[0],
    "while": lambda g, x: pn.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + g()), (x.new_zeros(()), x))[1],
    "cond": lambda g, x: pn.cond(x.sum() > 0, lambda x: g() + x, torch.clone, x),
}


def pulled_in(body: str, vjp: Callable[..., tuple]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        _, pull = vjp(lambda x: (x**3).sum(), x)
        return BODIES[body](lambda: pn.tree.leaves(pull(x.new_ones(())))[0], x)

    return run


@pytest.mark.parametrize("vjp", [pn.vjp, torch.func.vjp], ids=["pn", "raw"])
@pytest.mark.parametrize("body", BODIES)
def test_a_pull_in_a_body(device: torch.device, body: str, vjp: Callable[..., tuple]) -> None:
    """A body may call the pull of a vjp outside of it; where that cannot be compiled it is said, and never wrong."""
    f = pulled_in(body, vjp)
    x = torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device)
    torch.testing.assert_close(pn.jit(f, backend="eager")(x), f(x))
    if body != "while":
        total = lambda x: f(x).square().sum()  # noqa: E731
        torch.testing.assert_close(pn.jit(pn.grad(total), backend="eager")(x), pn.grad(total)(x))
        torch.testing.assert_close(pn.grad(pn.jit(total, backend="aot_eager"))(x), pn.grad(total)(x))
    for fn in (TRANSFORMED["jvp"](f), lambda x: pn.vmap(f)(x[None])):
        with pytest.raises(GradientError) as error:
            pn.jit(fn, backend="eager")(x)
        assert str(error.value) == (
            "vjp: its pull is called in the body of a compiled loop or branch, or of a recomputed step, and vjp itself "
            "outside of it, within another transformation: no derivative goes that way. Call vjp and its pull both in "
            "the body, or both outside."
        )


def test_what_a_trace_leaves_behind(device: torch.device) -> None:
    """A traced tensor that was put into a list is refused when another trace meets it."""
    left: list[Tensor] = []
    x = torch.ones(2, device=device)
    pn.jit(lambda x: (left.append(x * 2), x)[1], backend="eager")(x)
    with pytest.raises(TraceError) as error:
        pn.jit(lambda x: x + left[0], backend="eager")(x)
    assert str(error.value) == (
        "jit: the function uses a tensor that an earlier trace has left behind, in a global variable or an object's "
        "attribute; it has no value. Return what is to be kept."
    )


class StraightThrough(torch.autograd.Function):
    """Rounding with a derivative that is not its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 7 * gradient


def text_of(call: Callable[[], object]) -> str:
    with pytest.raises(GradientError) as error:
        call()
    return str(error.value)


@ENGINE
def test_rules_of_autograd_functions_are_not_lost(device: torch.device) -> None:
    """The rule of an autograd.Function holds in a compiled gradient; of a compiled function it is an error."""
    x = torch.tensor([1.2, 2.7], dtype=DOUBLE, device=device)
    f = lambda x: StraightThrough.apply(x * 2).sum()  # noqa: E731
    jitted = pn.jit(f, backend="aot_eager")
    assert jitted(x) == 7
    assert torch.equal(pn.jit(pn.grad(f), backend="aot_eager")(x), torch.full_like(x, 14))
    assert torch.equal(pn.jit(pn.vmap(pn.grad(f)), backend="aot_eager")(x), torch.full_like(x, 14))
    outside = (
        "autograd.Function StraightThrough: a compiled function that uses this one is differentiated from outside, but "
        "the rule is not in the compiled graph: compile the gradient instead, pn.jit(pn.grad(f))."
    )
    assert text_of(lambda: pn.grad(jitted)(x)) == outside
    assert text_of(lambda: jitted(x.clone().requires_grad_()).backward()) == outside


@ENGINE
@pytest.mark.parametrize("body", ["scan", "cond"])
def test_rules_of_autograd_functions_in_bodies(device: torch.device, body: str) -> None:
    """In the body of a compiled loop or branch such a rule is an error as soon as a derivative is asked for."""
    x = torch.tensor([1.2, 2.7], dtype=DOUBLE, device=device)
    f = {
        "scan": lambda x: pn.scan(lambda c, _: (StraightThrough.apply(c) * 1.1, None), x, None, length=2)[0].sum(),
        "cond": lambda x: pn.cond(x.sum() > 0, StraightThrough.apply, torch.clone, x).sum(),
    }[body]
    torch.testing.assert_close(pn.jit(f, backend="eager")(x), f(x))
    batch = lambda x: pn.vmap(f)(torch.stack([x, -x]))  # noqa: E731
    torch.testing.assert_close(pn.jit(batch, backend="eager")(x), batch(x))
    assert text_of(lambda: pn.jit(pn.grad(f), backend="eager")(x)) == (
        f"{body}: the body uses autograd.Function StraightThrough, which has a derivative rule of its own, and a "
        f"compiled loop's gradient is that of the traced body, which does not know it. Write the rule with "
        f"pn.custom_vjp or pn.custom_jvp, which graphs know, write the loop in Python, or do not compile it."
    )
