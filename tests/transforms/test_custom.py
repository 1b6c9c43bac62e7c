"""`custom_vjp` and `custom_jvp`: rules of one's own under every transformation, without a batching rule."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import GradientError

DOUBLE = torch.float64


@pn.custom_vjp
def relu(x: Tensor) -> Tensor:
    """The tutorials' ReLU with a derivative written by hand: 0 at 0."""
    return x.clamp(min=0)


relu.defvjp(lambda x: (x.clamp(min=0), x), lambda x, gradient: (torch.where(x > 0, gradient, 0),))


@pn.custom_vjp
def cubes(p: dict, factor: float) -> dict:
    """Trees in, trees out, a residual that is computed and one that is no tensor."""
    return {"y": (p["a"] ** 3).sum() * p["b"] * factor}


def cubes_forward(p: dict, factor: float) -> tuple:
    total = (p["a"] ** 3).sum()
    return {"y": total * p["b"] * factor}, (p["a"] ** 2, p["b"], total, factor, "word")


def cubes_backward(residuals: tuple, gradient: dict) -> tuple:
    squares, b, total, factor, word = residuals
    assert word == "word"
    g = gradient["y"] * factor
    return {"a": 3 * squares * b * g, "b": total * g}, None


cubes.defvjp(cubes_forward, cubes_backward)


@pn.custom_jvp
def softplus(x: Tensor, y: Tensor) -> Tensor:
    return torch.log1p(x.exp()) * y


softplus.defjvp(
    lambda primals, tangents: (
        softplus(*primals),
        tangents[0] * primals[0].sigmoid() * primals[1] + torch.log1p(primals[0].exp()) * tangents[1],
    )
)


def arguments(device: torch.device) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(4, generator=generator, dtype=DOUBLE).to(device),
        "b": torch.tensor(2.0, dtype=DOUBLE, device=device),
    }


def test_relu_of_the_tutorials(device: torch.device) -> None:
    """It works under grad, vmap, vmap(grad), jit and compile; the derivative at 0 is 0."""
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=DOUBLE, device=device)
    expected = torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE, device=device)
    assert torch.equal(relu(x), x.relu())
    assert torch.equal(pn.grad(lambda x: relu(x).sum())(x), expected)
    assert torch.equal(pn.vmap(pn.grad(relu))(x), expected)
    assert torch.equal(pn.grad(lambda x: pn.vmap(relu)(x).sum())(x), expected)
    assert torch.equal(pn.jit(pn.vmap(pn.grad(relu)), backend="aot_eager")(x), expected)
    leaf = x.clone().requires_grad_()
    relu(leaf).sum().backward()
    assert torch.equal(leaf.grad, expected)
    assert torch.equal(pn.grad(lambda x: pn.grad(lambda x: (relu(x) ** 2).sum())(x).sum())(x), 2 * expected)


def test_reverse_rule_under_all_transformations(device: torch.device) -> None:
    """With trees and computed residuals, first and second derivatives, batched or not, are right."""
    p = arguments(device)
    both = pn.tree.stack([p, pn.tree.map(lambda leaf: 2 * leaf, p)])

    def results(f: object) -> list:
        g = lambda p: f(p, 1.5)["y"]  # noqa: E731
        return [
            pn.grad(g)(p),
            pn.vmap(pn.grad(g))(both),
            pn.grad(lambda p: sum(leaf.square().sum() for leaf in pn.tree.leaves(pn.grad(g)(p))))(p),
            pn.jacrev(pn.grad(g))(p),
            pn.grad(lambda p: pn.vmap(g)(p).sum())(both),
            pn.vmap(pn.jacrev(pn.grad(g)))(both),
            pn.jit(pn.grad(g), backend="aot_eager")(p),
        ]

    plain = cubes.__wrapped__
    for mine, right in zip(results(cubes), results(plain), strict=True):
        assert pn.tree.allclose(mine, right, rtol=0, atol=1e-10)


def test_the_rule_is_used(device: torch.device) -> None:
    """A rule that differs from the true derivative wins, and None and holes are zeros."""
    straight = pn.custom_vjp(torch.round)
    straight.defvjp(lambda x: (x.round(), None), lambda _, g: (g,))
    x = torch.randn(5, device=device)
    assert torch.equal(pn.grad(lambda x: straight(x).sum())(x), torch.ones_like(x))
    cut = pn.custom_vjp(lambda p: p["a"].sum() + p["b"])
    cut.defvjp(lambda p: (p["a"].sum() + p["b"], None), lambda _, g: ({"a": pn.tree.HOLE, "b": 3 * g},))
    p = arguments(device)
    grads = pn.grad(cut)(p)
    assert torch.equal(grads["a"], torch.zeros_like(p["a"]))
    assert grads["b"] == 3
    none = pn.custom_vjp(lambda a, b: a * b)
    none.defvjp(lambda a, b: (a * b, None), lambda _, g: (None, g))
    assert torch.equal(pn.grad(lambda x: none(x, x).sum())(x), torch.ones_like(x))


@pn.custom_vjp
def sine(x: Tensor, y: Tensor) -> Tensor:
    """Twice the true derivative for x, none for y."""
    return x.sin() * y


def _sine_forward(x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return sine(x, y), (x.cos(), y)


sine.defvjp(_sine_forward, lambda kept, g: (2 * kept[0] * kept[1] * g, None))


def _sine_by_hand(x: Tensor, y: Tensor) -> Tensor:
    value, slope = (x.sin() * y).detach(), 2 * x.cos().detach() * y.detach()
    return value + slope * (x - x.detach())


FORWARD_USES_THE_FUNCTION: dict[str, Callable[[Callable[[Tensor, Tensor], Tensor]], Callable]] = {
    "grad": lambda f: pn.grad(lambda x, y: f(x, y).square().sum()),
    "vmap of grad": lambda f: pn.vmap(pn.grad(lambda x, y: f(x, y).square().sum())),
    "grad of vmap": lambda f: pn.grad(lambda x, y: pn.vmap(f)(x, y).square().sum()),
    "jacrev": lambda f: pn.jacrev(f),
    "jit of grad": lambda f: pn.jit(pn.grad(lambda x, y: f(x, y).square().sum()), backend="eager"),
    "grad of a compiled loop": lambda f: pn.jit(
        pn.grad(lambda x, y: pn.scan(lambda c, y: (f(c, y), None), x, y)[0].square().sum()), backend="eager"
    ),
}


@pytest.mark.parametrize("name", FORWARD_USES_THE_FUNCTION)
def test_the_forward_rule_may_use_the_function(name: str, device: torch.device) -> None:
    """As in JAX's own example: there it is the function, under every transformation."""
    x = torch.linspace(-1, 1, 4, dtype=DOUBLE, device=device).reshape(2, 2)
    transformed = FORWARD_USES_THE_FUNCTION[name]
    torch.testing.assert_close(transformed(sine)(x, x.cos()), transformed(_sine_by_hand)(x, x.cos()))
    leaf = x.clone().requires_grad_()
    outside = pn.jit(lambda x: sine(x, x.cos().detach()).square().sum(), backend="aot_eager")
    expected = pn.grad(lambda x: _sine_by_hand(x, x.cos().detach()).square().sum())(x)
    torch.testing.assert_close(torch.autograd.grad(outside(leaf), leaf)[0], expected)


def test_the_function_runs_where_nothing_is_differentiated(device: torch.device) -> None:
    """The forward rule, which keeps what the gradient needs, runs for gradients only; results are the same."""
    ran: list[str] = []

    @pn.custom_vjp
    def doubled(x: Tensor) -> Tensor:
        ran.append("function")
        return 2 * x

    doubled.defvjp(lambda x: (ran.append("rule") or 2 * x, None), lambda _, g: (2 * g,))  # pyright: ignore
    x = torch.ones(3, dtype=DOUBLE, device=device)
    for call in (doubled, pn.vmap(doubled), pn.jit(doubled, backend="eager")):
        assert torch.equal(call(x), 2 * x)
    assert ran == ["function"] * 3
    pn.grad(lambda x: doubled(x).sum())(x)
    assert ran[3:] == ["rule"]


def test_forward_rule_under_all_transformations(device: torch.device) -> None:
    """Forward mode, reverse mode, their batched forms and second derivatives are right."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(6, generator=generator, dtype=DOUBLE).to(device) for _ in range(2))

    def results(f: object) -> list:
        total = lambda x, y: f(x, y).sum()  # noqa: E731
        return [
            pn.jvp(f, (x, y), (y, x))[1],
            pn.jacfwd(f)(x, y),
            pn.vmap(lambda x, y: pn.jvp(f, (x, y), (y, x))[1])(x, y),
            pn.grad(total, (0, 1))(x, y),
            pn.vmap(pn.grad(f, (0, 1)))(x, y),
            pn.hessian(total)(x, y),
            pn.jacrev(pn.grad(total))(x, y),
        ]

    for mine, right in zip(results(softplus), results(softplus.__wrapped__), strict=True):
        assert pn.tree.allclose(mine, right, rtol=0, atol=1e-10)
    assert pn.grad(softplus)(torch.tensor(800.0, device=device), torch.tensor(1.0, device=device)) == 1


def text_of(call: object) -> str:
    with pytest.raises(GradientError) as error:
        call()
    return str(error.value)


def test_errors(device: torch.device) -> None:
    """A missing rule and a rule that returns what does not fit are named."""
    x = torch.ones(3, device=device)

    def double(x: Tensor) -> Tensor:
        return 2 * x

    def with_rule(forward: object, backward: object) -> object:
        f = pn.custom_vjp(double)
        f.defvjp(forward, backward)
        return lambda: pn.grad(lambda x: f(x).sum())(x)

    assert text_of(lambda: pn.custom_vjp(double)(x)) == (
        "custom_vjp: 'double' has no rule: call double.defvjp(forward, backward) first."
    )
    assert text_of(lambda: pn.custom_jvp(double)(x)) == (
        "custom_jvp: 'double' has no rule: call double.defjvp(rule) first."
    )
    assert text_of(lambda: relu(x=x)) == (
        "custom_vjp: 'relu' was called with keyword arguments (x), for which the rule has no place: pass them by "
        "position."
    )
    assert text_of(with_rule(lambda x: 2 * x, lambda r, g: (2 * g,))) == (
        "custom_vjp: the forward rule of 'double' must return (output, residuals), got a Tensor."
    )
    assert text_of(with_rule(lambda x: (3, None), lambda r, g: (2 * g,))) == (
        "custom_vjp: 'double' must return tensors, got 3."
    )
    assert text_of(with_rule(lambda x: (2 * x, None), lambda r, g: 2 * g)) == (
        "custom_vjp: the backward rule of 'double' must return a tuple with a gradient (or None) for each of the 1 "
        "arguments, got a Tensor."
    )
    assert text_of(with_rule(lambda x: (2 * x, None), lambda r, g: (2 * g, None))) == (
        "custom_vjp: the backward rule of 'double' must return a tuple with a gradient (or None) for each of the 1 "
        "arguments, got 2 of them."
    )
    assert text_of(with_rule(lambda x: (2 * x, None), lambda r, g: (g.sum(),))) == (
        "custom_vjp: the backward rule of 'double' must return for argument 0 a gradient that looks like it, f32[3], "
        "got f32[]."
    )
    wrong = pn.custom_jvp(double)
    wrong.defjvp(lambda primals, tangents: tangents[0])
    assert text_of(lambda: pn.jvp(wrong, (x,), (x,))) == (
        "custom_jvp: the rule of 'double' must return (output, output tangent), got a Tensor."
    )
    wrong.defjvp(lambda primals, tangents: (2 * primals[0], (tangents[0], tangents[0])))
    assert text_of(lambda: pn.jvp(wrong, (x,), (x,))) == (
        "custom_jvp: the tangent that the rule of 'double' returns must look like the output, f32[3], got (f32[3], "
        "f32[3])."
    )
    wrong.defjvp(lambda primals, tangents: (2 * primals[0], tangents[0].sum()))
    assert text_of(lambda: pn.grad(lambda x: wrong(x).sum())(x)) == (
        "custom_jvp: the tangent that the rule of 'double' returns must look like the output, f32[3], got f32[]."
    )
    number = pn.custom_jvp(lambda x: (x, 3))
    number.defjvp(lambda primals, tangents: (primals, tangents))
    assert text_of(lambda: number(x)) == "custom_jvp: '<lambda>' must return tensors, got 3."
    forward = (
        "custom_vjp 'relu': its rule is for reverse mode, and forward mode (pn.jvp, pn.jacfwd, pn.hessian) has none. "
        "Use pn.custom_jvp, whose rule serves both modes, or reverse mode: pn.jacrev(pn.grad(f)) is a Hessian."
    )
    assert text_of(lambda: pn.jvp(relu, (x,), (x,))) == forward
    looped = lambda x: pn.scan(lambda c, _: (relu(c), None), x, None, length=2)[0]  # noqa: E731
    assert text_of(lambda: pn.jit(lambda x: pn.jvp(looped, (x,), (x,)), backend="eager")(x)) == forward


def test_forward_over_forward(device: torch.device) -> None:
    """Forward mode within forward mode sees the rule twice, batched or not."""
    cube = pn.custom_jvp(lambda x: x**3)
    cube.defjvp(lambda primals, tangents: (primals[0] ** 3, 3 * primals[0] ** 2 * tangents[0]))
    x = torch.tensor([1.0, 2.0, -3.0], dtype=DOUBLE, device=device)
    one = torch.ones_like(x)
    first = lambda x: pn.jvp(cube, (x,), (torch.ones_like(x),))[1]  # noqa: E731
    assert torch.equal(pn.jvp(first, (x,), (one,))[1], 6 * x)
    assert torch.allclose(pn.jacfwd(pn.jacfwd(cube))(x).sum((1, 2)), 6 * x)
    assert torch.allclose(pn.vmap(pn.jacfwd(pn.jacfwd(cube)))(x), 6 * x)
    assert torch.equal(pn.grad(lambda x: first(x).sum())(x), 6 * x)


def test_forward_over_forward_from_outside(device: torch.device) -> None:
    """The same in a compiled function whose gradient is taken from outside."""
    cube = pn.custom_jvp(lambda x: x**3)
    cube.defjvp(lambda primals, tangents: (primals[0] ** 3, 3 * primals[0] ** 2 * tangents[0]))
    x = torch.tensor([0.3, -0.5, 0.7], dtype=DOUBLE, device=device)

    def curvature(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: pn.jacfwd(pn.jacfwd(lambda x: f(x.sin())))(x).sum()

    leaf = x.clone().requires_grad_()
    value = pn.jit(curvature(cube), backend="eager")(leaf)
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], pn.grad(curvature(lambda x: x**3))(x))


# Rules that differ from the derivatives of the functions, so that it shows where one is lost.


@pn.custom_vjp
def wave(x: Tensor, w: Tensor) -> Tensor:
    """Three times the gradient for x, twice that for w."""
    return (x * w).sin()


wave.defvjp(
    lambda x, w: ((x * w).sin(), (x, w, (x * w).cos(), 2.0)),
    lambda kept, g: (3 * kept[1] * kept[2] * g, kept[3] * (kept[0] * kept[2] * g).sum()),
)


@pn.custom_jvp
def twice(x: Tensor, w: Tensor) -> Tensor:
    """A rule that uses its own function and another one with a rule."""
    return wave(x, w) + x


def _moved(primals: tuple, tangents: tuple) -> tuple:
    y = twice(*primals)
    return y, tangents[0] * 0.2 * y + tangents[1] * primals[0]


twice.defjvp(_moved)


@pn.custom_vjp
def counted(p: dict, w: Tensor) -> dict:
    """Containers, integers among arguments, results and residuals, no gradient for some."""
    return {"y": p["x"] * w * p["n"], "n": p["n"] + 1}


counted.defvjp(
    lambda p, w: ({"y": p["x"] * w * p["n"], "n": p["n"] + 1}, {**p, "w": w}),
    lambda kept, g: ({"x": kept["n"] * kept["w"] * g["y"] * 1.7, "n": pn.tree.HOLE}, None),
)


def _in_tree(x: Tensor, w: Tensor) -> Tensor:
    result = counted({"x": x, "n": torch.tensor(2, device=x.device)}, w)
    return result["y"] * result["n"]


FUNCTIONS = {"custom_vjp": wave, "custom_jvp": twice, "containers": _in_tree}


def _scanned(f: Callable, x: Tensor, w: Tensor) -> Tensor:
    last, ys = pn.scan(lambda c, row: (f(c, w) * row, f(row, w)), x, torch.stack([x, x * 2]), reverse=True)
    return last + ys.sum(0)


def _chosen(f: Callable, x: Tensor, w: Tensor) -> Tensor:
    def step(i: Tensor, c: Tensor) -> Tensor:
        return pn.cond(c.sum() > 0.2, lambda c: pn.vmap(lambda c: f(c, w))(c), lambda c: f(c, w) * i, c)

    return pn.fori_loop(1, 3, step, x)


def _plain(f: Callable, x: Tensor, w: Tensor) -> Tensor:
    return f(x, w)


def _derivatives(f: Callable, x: Tensor, w: Tensor) -> list:
    total = lambda x, w: f(x, w).square().sum()  # noqa: E731
    both = pn.grad(total, (0, 1))
    return [
        f(x, w),
        both(x, w),
        pn.grad(lambda w: both(x, w)[0].sin().sum())(w),
        pn.vmap(both, in_dims=(0, None))(torch.stack([x, x.cos()]), w),
        pn.grad(lambda w: pn.vmap(total, in_dims=(0, None))(torch.stack([x, x.cos()]), w).sum())(w),
    ]


def _forward_derivatives(f: Callable, x: Tensor, w: Tensor) -> list:
    total = lambda x: f(x, w).square().sum()  # noqa: E731
    return [pn.jvp(f, (x, w), (x.cos(), w * 2)), pn.vmap(pn.hessian(total))(torch.stack([x, x.cos()]))]


@pytest.mark.parametrize(
    ("kind", "place"), [*((kind, place) for kind in FUNCTIONS for place in (_scanned, _plain)), ("custom_vjp", _chosen)]
)
def test_rules_in_compiled_graphs(device: torch.device, kind: str, place: Callable) -> None:
    """Compiled loops and branches and functions differentiated from outside have the derivatives of the rules."""
    x = torch.tensor([0.3, -0.7, 0.9], dtype=DOUBLE, device=device)
    w = torch.tensor(0.8, dtype=DOUBLE, device=device)
    f = lambda x, w: place(FUNCTIONS[kind], x, w)  # noqa: E731
    compiled = pn.jit(lambda x, w: _derivatives(f, x, w), backend="eager")
    torch.testing.assert_close(compiled(x, w), _derivatives(f, x, w), rtol=1e-10, atol=1e-12)
    if kind == "custom_jvp":
        f = lambda x, w: place(softplus, x, w)  # noqa: E731
        compiled = pn.jit(lambda x, w: _forward_derivatives(f, x, w), backend="eager")
        torch.testing.assert_close(compiled(x, w), _forward_derivatives(f, x, w), rtol=1e-10, atol=1e-12)
    leaves = [x.requires_grad_(), w.requires_grad_()]

    def gradients(f: Callable, create_graph: bool) -> tuple:
        value = f(*leaves).square().sum()
        return torch.autograd.grad(value, leaves, create_graph=create_graph, materialize_grads=True)

    for backend in ("eager", "aot_eager") if place is _plain else ("eager",):
        found, expected = (gradients(g, backend == "eager") for g in (pn.jit(f, backend=backend), f))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        if backend == "eager":
            again = [torch.autograd.grad(sum(y.sum() for y in one), leaves)[0] for one in (found, expected)]
            torch.testing.assert_close(*again, rtol=1e-10, atol=1e-12)


def test_rules_in_compiled_while_loops(device: torch.device) -> None:
    """The forward mode of a compiled loop without a known end uses the rules in its body."""
    x = torch.tensor([0.3, -0.7], dtype=DOUBLE, device=device)

    def loop(x: Tensor) -> Tensor:
        return pn.while_loop(lambda s: s[1] < 3, lambda s: (softplus(s[0], x), s[1] + 1), (x, x.new_zeros(())))[0]

    def both(x: Tensor) -> list:
        return [pn.jvp(loop, (x,), (x,)), pn.vmap(pn.jacfwd(loop))(torch.stack([x, -x]))]

    torch.testing.assert_close(pn.jit(both, backend="eager")(x), both(x), rtol=1e-10, atol=1e-12)


def test_rules_see_what_they_close_over(device: torch.device) -> None:
    """Rules of functions that are made in the surrounding function work in compiled loops, batched as well."""

    def loop(w: Tensor, x: Tensor) -> Tensor:
        clipped = pn.custom_vjp(lambda x: x * w)
        clipped.defvjp(lambda x: (x * w, None), lambda _, g: ((g * w).clamp(-1, 1),))
        scaled = pn.custom_jvp(lambda x: x * w)
        scaled.defjvp(lambda primals, tangents: (scaled(*primals), tangents[0] * w * 2))
        return pn.scan(lambda c, _: (scaled(clipped(c)), None), x, None, length=2)[0].sum()

    ws = torch.tensor([0.3, 2.0], dtype=DOUBLE, device=device)
    x = torch.tensor([1.0, -2.0], dtype=DOUBLE, device=device)
    many = pn.vmap(pn.value_and_grad(loop, 1), in_dims=(0, None))
    expected = [pn.value_and_grad(loop, 1)(w, x) for w in ws]
    found = pn.jit(many, backend="eager")(ws, x)
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*expected, strict=True))), rtol=0, atol=1e-12)


def test_what_examples_share(device: torch.device) -> None:
    """Under vmap a rule is one for each example: residuals and results that all share are counted once for each."""
    w = torch.tensor(0.8, dtype=DOUBLE, device=device)
    xs = torch.tensor([[0.3, -0.7], [0.1, 0.2]], dtype=DOUBLE, device=device)
    two = pn.custom_vjp(lambda x, w: (x * w, w * 2))
    two.defvjp(lambda x, w: ((x * w, w * 2), w), lambda w, g: (g[0] * w, g[1].clamp(-1, 1) + w**2))

    def total(f: Callable, w: Tensor) -> Tensor:
        return f(xs, w).sum()

    def first(x: Tensor, w: Tensor) -> Tensor:
        return wave(x, w).square().sum()

    def second(x: Tensor, w: Tensor) -> Tensor:
        y, z = two(x, w)
        return (y * z).sum()

    for f in (first, second):
        batched, looped = pn.vmap(f, in_dims=(0, None)), lambda xs, w, f=f: torch.stack([f(x, w) for x in xs])
        for order in (
            lambda g: pn.grad(lambda w: total(g, w))(w),
            lambda g: pn.grad(lambda w: pn.grad(lambda w: total(g, w))(w).sin())(w),
            lambda g: pn.grad(lambda w: pn.grad(lambda xs: g(xs, w).sum())(xs).sin().sum())(w),
        ):
            torch.testing.assert_close(order(batched), order(looped), rtol=1e-12, atol=1e-12)


def test_within_remat(device: torch.device) -> None:
    """A function with a rule can be computed again."""
    x = torch.tensor([0.3, -0.7], dtype=DOUBLE, device=device)
    w = torch.tensor(0.8, dtype=DOUBLE, device=device)
    total = lambda f: pn.grad(lambda x: f(x, w).sum())(x)  # noqa: E731
    assert torch.equal(total(pn.remat(wave)), total(wave))


def test_integer_results(device: torch.device) -> None:
    """A forward-mode rule says nothing of integers among the results."""
    top = pn.custom_jvp(lambda x: (x * 2, x.argmax()))
    top.defjvp(lambda primals, tangents: (top(*primals), (tangents[0] * 3, primals[0].argmax())))
    x = torch.tensor([0.3, 0.9], dtype=DOUBLE, device=device)
    assert pn.jvp(lambda x: top(x)[0], (x,), (x,))[1].equal(3 * x)
    assert pn.vmap(pn.grad(lambda x: top(x)[0].sum()))(x[None]).tolist() == [[3, 3]]
    looped = lambda x: pn.scan(lambda c, _: top(c), x, None, length=2)[0].sum()  # noqa: E731
    assert pn.jit(pn.grad(looped), backend="eager")(x).tolist() == [9, 9]


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.clamp(-1, 1)

    @staticmethod
    def jvp(ctx: object, tangent: Tensor) -> Tensor:
        return tangent.clamp(-1, 1)


@pytest.mark.filterwarnings("ignore:Error detected in GeneratedBackwardFor_purenn:UserWarning")
def test_graphs_do_not_lose_rules_that_they_cannot_hold(device: torch.device) -> None:
    """Where a graph would be differentiated without the rule of an autograd.Function there is an error."""
    x = torch.tensor(2.0, device=device)
    step = lambda c: 2 * _Clipped.apply(c)  # noqa: E731
    scanned = lambda x: pn.scan(lambda c, _: (step(c), None), x, None, length=3)[0]  # noqa: E731
    looped = lambda x: pn.while_loop(lambda c: c < 9, step, x)  # noqa: E731
    chosen = lambda x: pn.cond(x > 0, step, torch.sin, x)  # noqa: E731
    name = "autograd.Function _Clipped"
    for f, kind in ((scanned, "scan"), (looped, "while_loop"), (chosen, "cond")):
        assert pn.jit(f, backend="eager")(x) == f(x)
        forward = pn.jit(lambda x, f=f: pn.jvp(f, (x,), (x,)), backend="eager")
        reverse = pn.jit(pn.grad(f), backend="eager")
        for call in (forward,) if f is looped else (forward, reverse):
            assert text_of(lambda call=call: call(x)) == (
                f"{kind}: the body uses {name}, which has a derivative rule of its own, and a compiled loop's "
                f"gradient is that of the traced body, which does not know it. Write the rule with pn.custom_vjp or "
                f"pn.custom_jvp, which graphs know, write the loop in Python, or do not compile it."
            )
    jitted = pn.jit(lambda x: 5 * _Clipped.apply(x), backend="aot_eager")
    assert jitted(x) == 10
    assert text_of(lambda: jitted(x.clone().requires_grad_()).backward()) == (
        f"{name}: a compiled function that uses this one is differentiated from outside, but the rule is not in the "
        f"compiled graph: compile the gradient instead, pn.jit(pn.grad(f))."
    )


@pytest.mark.filterwarnings("ignore:.*setup_context.*")
def test_torch_compile(device: torch.device) -> None:
    """torch.compile knows the rules of reverse mode from outside; where it would lose one there is an error."""
    product = pn.custom_vjp(lambda a, b: a * b)
    product.defvjp(lambda a, b: (a * b, (a, b)), lambda kept, g: (kept[1] * g, 3 * kept[0] * g))
    a, b = torch.tensor([1.0, 2.0], device=device), torch.tensor([3.0, 4.0], device=device)

    def compiled(fn: object) -> object:
        torch.compiler.reset()
        return torch.compile(fn, fullgraph=True, backend="aot_eager")

    for f in (product, softplus):
        torch.testing.assert_close(compiled(f)(a, b), f(a, b))
    leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    gradients = torch.autograd.grad(compiled(lambda a, b: product(a, b).sum())(*leaves), leaves)
    assert [x.tolist() for x in gradients] == [[3, 4], [3, 6]]
    for f, kind, name in ((product, "custom_vjp", "<lambda>"), (softplus, "custom_jvp", "softplus")):
        total = lambda a, b, f=f: f(a, b).sum()  # noqa: E731
        for fn, given in ((pn.grad(total), (a, b)), (pn.vmap(f), (a, b)), (total, leaves)):
            if fn is total and f is product:
                continue
            with pytest.raises(torch._dynamo.exc.Unsupported) as error:
                compiled(fn)(*given)
            assert (
                f"{kind}: within torch.compile a transformation would differentiate the computation of '{name}' "
                f"instead of using its rule. Compile with pn.jit, which knows the rule."
            ) in str(error.value)
        # With graph breaks the function runs in eager, where the rule is known.
        torch.compiler.reset()
        broken = torch.compile(pn.grad(total), backend="aot_eager")
        torch.testing.assert_close(broken(a, b), pn.grad(total)(a, b))
