"""`pn.remat`: the same derivatives with less memory."""

from collections.abc import Callable

import pytest
import torch
from _pairing import peak_bytes
from _transform_models import DOUBLE, inputs, loss, make, net
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, GradientError
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
    torch.testing.assert_close(pn.grad(pn.remat(inner))(w), pn.grad(inner)(w), rtol=1e-12, atol=1e-12)


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
    """The function is computed again for the second derivative as well; what products keep is used up by the first."""
    x = torch.linspace(-1, 1, 5, dtype=DOUBLE, device=device, requires_grad=True)

    def second(f: Callable[[Tensor], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    def f(x: Tensor) -> Tensor:
        return (torch.outer(x, x) @ x.sin()).exp()

    torch.testing.assert_close(second(pn.remat(f)), second(f), rtol=0, atol=1e-12)
    with pytest.raises(GradientError) as error:
        second(pn.remat(f, policy="products"))
    assert str(error.value) == (
        "remat: what policy='products' keeps can be used by one backward pass only, and this is the second (a second "
        "derivative, or retain_graph=True). Use policy=None, or pn.grad of pn.grad."
    )


def test_around_transformations(device: torch.device) -> None:
    """A function that itself contains transformations of torch.func runs as it is, and is right."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, device=device)

    def f(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: x.sin().square().sum())(x).sum()

    for _ in range(2):
        assert torch.equal(pn.grad(pn.remat(f))(x), pn.grad(f)(x))
