"""Writes in place to tensors that the function itself makes: compiled, their derivatives are those of eager."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import purenn as pn

Fn = Callable[[Tensor], Tensor]


def scaled(x: Tensor) -> Tensor:
    """Overwrites a value that the gradient needs as it was."""
    return x.sin().mul_(x)


def read_before(x: Tensor) -> Tensor:
    """Reads a view before the write, and another one after it."""
    y = x.sin()
    first = (y[:2] + y[1:]).exp()
    y[:2].mul_(x[1:])
    return torch.cat([first + y[:2], y[2:]])


def filled(x: Tensor) -> Tensor:
    """Writes parts of what has no derivative before."""
    y = torch.zeros_like(x)
    y[1:] = x[1:].exp()
    y[0] += x[1] * x[0]
    return y


def filled_transposed(x: Tensor) -> Tensor:
    """The same where the axes lie in memory in another order."""
    table = torch.stack([x, x.cos()])
    y = torch.zeros_like(table).T
    y[1:] = table.T[1:] * 2
    y[0] = y[1].exp()
    return y.sum(1)


WRITERS = (scaled, read_before, filled, filled_transposed)


def loop(f: Fn, *, remat: bool = False) -> Fn:
    return lambda x: pn.scan(lambda c, _: (f(c).sin(), None), x, length=2, remat=remat)[0]


def push(f: Fn) -> Fn:
    return lambda x: pn.jvp(f, (x,), (x.cos(),))[1]


def total(f: Fn) -> Fn:
    return lambda x: f(x).sin().sum()


PLACES: dict[str, Callable[[Fn], Fn]] = {
    "forward mode": push,
    "columns of reverse mode of reverse mode": lambda f: pn.jacfwd(pn.grad(total(pn.grad(total(f))))),
    "gradient of a loop": lambda f: pn.grad(total(loop(f))),
    "with remat": lambda f: pn.grad(total(loop(f, remat=True))),
    "second gradient of a loop": lambda f: pn.grad(total(pn.grad(total(loop(f))))),
    "Hessian of a loop": lambda f: pn.hessian(total(loop(f))),
    "loop of forward mode in a batch": lambda f: lambda x: pn.vmap(loop(push(f)))(torch.stack([x, x + 1])),
    "gradient of a branch": lambda f: pn.grad(lambda x: pn.cond(x.sum() > 0, f, torch.sin, x).sum()),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("write", WRITERS)
def test_writes_to_fresh_tensors(write: Fn, place: str, device: torch.device) -> None:
    """A write is a part of the function: what was read before it, and what it had not written to, has its gradient."""
    x = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64, device=device)
    f = PLACES[place](write)
    torch.testing.assert_close(pn.jit(f, backend="aot_eager")(x), f(x), rtol=1e-12, atol=1e-12)
