"""`pn.remat`: the same derivatives with less memory."""

from collections.abc import Callable

import pytest
import torch
from _pairing import peak_bytes
from _transform_models import DOUBLE, inputs, loss, make, net
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError
from purenn.layers import Dropout, Linear, dropout, linear

POLICIES = [None, "products"]


@pytest.mark.parametrize("policy", POLICIES)
def test_same_derivatives(device: torch.device, policy: str | None) -> None:
    """Under grad, vmap(grad), grad(grad), jvp, hessian and jit it equals the function itself."""
    p, x = make(device), inputs(device)
    again = pn.remat(net, policy=policy)

    def mine(p: object, x: Tensor) -> Tensor:
        return again(p, x).square().sum()

    def second(f: object) -> object:
        return pn.grad(lambda p, x: pn.grad(f)(p, x).first.weight.square().sum())

    direction = pn.tree.partition(p)[0]
    cases = {
        "grad": pn.grad,
        "vmap of grad": lambda f: pn.vmap(pn.grad(f), (None, 0)),
        "grad of vmap": lambda f: pn.grad(lambda p, x: pn.vmap(f, (None, 0))(p, x).sum()),
        "second": second,
        "jvp": lambda f: lambda p, x: pn.jvp(lambda p: f(p, x), (p,), (direction,))[1],
        "hessian": pn.hessian,
        "jit": lambda f: pn.jit(pn.grad(f), backend="aot_eager"),
    }
    for name, transform in cases.items():
        same = pn.tree.allclose(transform(mine)(p, x), transform(loss)(p, x), rtol=0, atol=1e-10)
        assert same, f"{name}: {same}"


@pytest.mark.parametrize("policy", POLICIES)
def test_closures_have_gradients(device: torch.device, policy: str | None) -> None:
    """Parameters that the function closes over are not cut off."""
    p, x = make(device), inputs(device)

    def through(p: object) -> Tensor:
        return pn.remat(lambda x: net(p, x), policy=policy)(x).square().sum()

    assert pn.tree.allclose(pn.grad(through)(p), pn.grad(loss)(p, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("policy", POLICIES)
def test_transformations_inside(device: torch.device, policy: str | None) -> None:
    """A function that itself transforms by torch.func, which cannot run within a checkpoint, has its gradient too."""
    x = inputs(device)[0]
    inside = {
        "vjp": lambda x: pn.vjp(torch.sin, x)[1](x).sum(),
        "jacfwd": lambda x: pn.jacfwd(torch.sin)(x).sum(),
        "vmap": lambda x: pn.vmap(torch.sin)(x).sum(),
    }
    for fn in inside.values():
        torch.testing.assert_close(pn.grad(pn.remat(fn, policy=policy))(x), pn.grad(fn)(x))


def test_gradients_inside(device: torch.device) -> None:
    """A gradient within the function, of something that closes over its parameters, is the same when computed again."""
    x = inputs(device)[0]

    def inner(w: Tensor) -> Tensor:
        return (pn.grad(lambda x: (x.sum() * x * w[0] + w[1]).sin().square().sum())(x) * w[2]).exp().sum()

    w = x.sin()
    for policy in POLICIES:
        found = pn.grad(pn.remat(inner, policy=policy))(w)
        torch.testing.assert_close(found, pn.grad(inner)(w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_products_around_a_gradient_inside(device: torch.device, policy: str | None) -> None:
    """Products before, within and after a gradient inside are the same when computed again, jitted or not."""
    x = torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).to(device)

    def loss(w: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(x @ w) @ w).exp().sum()

    def step(w: Tensor) -> Tensor:
        w = w @ w.sin()
        return (x @ (w - 0.1 * pn.grad(loss)(w)) @ w).tanh().square().sum()

    for f in (step, lambda w: pn.remat(step, policy=policy)(w.sin()), pn.jit(step, backend="eager")):
        g = pn.remat(f, policy=policy)
        w = x[:3].clone()
        torch.testing.assert_close(pn.grad(g)(w), pn.grad(f)(w), rtol=1e-10, atol=1e-12)
        leaf = w.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(g(leaf), leaf)[0], pn.grad(f)(w), rtol=1e-10, atol=1e-12)
        one, other = (pn.grad(lambda w, h=h: pn.grad(h)(w).square().sum())(w) for h in (g, f))
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_same_draws_when_computed_again(device: torch.device) -> None:
    """With a key, the mask of the backward pass is the mask of the forward pass."""
    x = torch.randn(50, dtype=DOUBLE, device=device)
    key = pn.random.key(0, device)

    def draw(x: Tensor) -> Tensor:
        return dropout(Dropout(0.5), x.sin(), key=key).exp()

    plain = pn.grad(lambda x: draw(x).sum())(x)
    for policy in POLICIES:
        with pn.random.strict():  # the repetition is no second use of the key
            again = pn.grad(lambda x, policy=policy: pn.remat(draw, policy=policy)(x).sum())(x)
        assert torch.equal(again, plain)


def test_it_saves_memory(device: torch.device) -> None:
    """A stack of blocks with wide intermediate values needs a fraction of the memory for its gradient."""
    keys = pn.random.split(pn.random.key(0, device), 8)
    blocks = tuple((Linear.init(k, 32, 256), Linear.init(k, 256, 32)) for k in keys)
    x = torch.randn(512, 32, device=device)

    def block(p: tuple[Linear, Linear], x: Tensor) -> Tensor:
        return linear(p[1], linear(p[0], x).tanh().sin().exp())

    def total(blocks: tuple, x: Tensor, run: object) -> Tensor:
        for p in blocks:
            x = run(p, x)
        return x.square().sum()

    plain = peak_bytes(lambda: pn.grad(total)(blocks, x, block), device)
    saved = peak_bytes(lambda: pn.grad(total)(blocks, x, pn.remat(block)), device)
    assert saved < 0.4 * plain


def test_errors() -> None:
    """Unknown policies are refused."""
    with pytest.raises(ArgumentError) as error:
        pn.remat(torch.sin, policy="dots")
    assert str(error.value) == "remat: policy must be 'products' or None, got 'dots'."


def test_twice_differentiated_by_plain_autograd(device: torch.device) -> None:
    """The function is computed again for the second derivative as well, products included."""
    x = torch.linspace(-1, 1, 5, dtype=DOUBLE, device=device, requires_grad=True)

    def second(f: Callable[[Tensor], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    def f(x: Tensor) -> Tensor:
        return (torch.outer(x, x) @ x.sin()).exp()

    for policy in POLICIES:
        torch.testing.assert_close(second(pn.remat(f, policy=policy)), second(f), rtol=0, atol=1e-12)


def test_two_backward_passes(device: torch.device) -> None:
    """A second backward pass through the same graph gives what the first gave."""
    x = torch.linspace(-1, 1, 5, dtype=DOUBLE, device=device, requires_grad=True)
    for policy in POLICIES:
        y = pn.remat(lambda x: (torch.outer(x, x) @ x.sin()).exp().sum(), policy=policy)(x)
        first = torch.autograd.grad(y, x, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(y, x)[0], first)


def test_around_transformations(device: torch.device) -> None:
    """A function that itself contains transformations of torch.func runs as it is, and is right."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, device=device)

    def f(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: x.sin().square().sum())(x).sum()

    for _ in range(2):
        assert torch.equal(pn.grad(pn.remat(f))(x), pn.grad(f)(x))


@pytest.mark.parametrize("policy", POLICIES)
def test_first_calls_of_jitted_functions(device: torch.device, policy: str | None) -> None:
    """What a trace keeps for itself is no part of what is computed again, in a gradient inside as little."""
    x = inputs(device)[0]

    def f(w: Tensor) -> Tensor:
        return (torch.outer(w, w) @ w).tanh()

    def differentiated(g: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda w: pn.grad(lambda w: g(w).square().sum())(w)

    def jitted(g: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return pn.jit(g, backend="eager")

    def again(g: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return pn.remat(g, policy=policy)

    first, second = differentiated(f), differentiated(differentiated(f))
    for found, expected in (
        (again(differentiated(jitted(f))), first),
        (again(jitted(differentiated(f))), first),
        (again(jitted(again(differentiated(f)))), first),
        (again(differentiated(again(jitted(differentiated(f))))), second),
    ):
        torch.testing.assert_close(found(x), expected(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(differentiated(found)(x), differentiated(expected)(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_around_what_asks_for_values(device: torch.device, policy: str | None) -> None:
    """A branch is chosen by its predicate, and only that one runs; values can be checked."""
    root = pn.remat(lambda x: pn.cond(x > 0, torch.sqrt, torch.zeros_like, x), policy=policy)
    x = torch.tensor(-4.0, dtype=DOUBLE, device=device)
    assert pn.grad(root)(x) == 0
    assert pn.grad(root)(-x) == 0.25
    checked = pn.remat(pn.check_numerics(torch.log), policy=policy)
    torch.testing.assert_close(checked(-x), (-x).log())


@pytest.mark.parametrize("inner", POLICIES)
@pytest.mark.parametrize("outer", POLICIES)
def test_nested(device: torch.device, outer: str | None, inner: str | None) -> None:
    """Functions that are computed again within functions that are, with gradients inside."""
    x = torch.linspace(-1, 1, 3, dtype=DOUBLE, device=device)

    def f(w: Tensor) -> Tensor:
        return pn.grad(lambda v: (torch.outer(v, w) @ (w * v)).tanh().square().sum())(w.cos())

    def step(g: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return lambda c, row: (c * 0.5 + row, g(c))

    g = pn.remat(lambda w: pn.remat(f, policy=inner)(w.sin()) @ torch.outer(w, w), policy=outer)
    plain = lambda w: f(w.sin()) @ torch.outer(w, w)  # noqa: E731
    torch.testing.assert_close(g(x), plain(x), rtol=1e-12, atol=1e-12)
    for of in (g, plain):
        total = pn.scan(step(of), x, torch.stack([x, x * 0.3]), remat=of is g)[1].sum()
        torch.testing.assert_close(total, f_total(plain, x), rtol=1e-12, atol=1e-12)
    found, expected = (pn.grad(lambda w, of=of: of(w).square().sum())(x) for of in (g, plain))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def f_total(g: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The sum of what the loop of `test_nested` collects, by hand."""
    return g(x).sum() + g(x * 0.5 + x).sum()
