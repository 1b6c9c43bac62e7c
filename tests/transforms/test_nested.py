"""Gradients within gradients, which plain autograd takes where it can."""

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import MutationError

DOUBLE = torch.float64


def cubes(w: Tensor) -> Tensor:
    return (w**3).sum()


def test_what_is_closed_over_is_constant(device: torch.device) -> None:
    """The inner gradient is by the argument alone, although the function closes over the same tensor."""
    w = torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device)

    def outer(w: Tensor) -> Tensor:
        return pn.grad(lambda v: (v * w).sum())(w).sum()

    assert torch.equal(pn.grad(outer)(w), torch.ones_like(w))
    assert torch.equal(torch.func.grad(outer)(w), torch.ones_like(w))


def test_constants_leave_no_graph(device: torch.device) -> None:
    """An inner gradient of constants is constant, and what is returned requires no grad."""
    w = torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device)
    value, gradient = pn.value_and_grad(lambda v: (v * pn.grad(cubes)(w)).sum())(w)
    assert torch.equal(gradient, 3 * w**2)
    assert not value.requires_grad
    assert not gradient.requires_grad
    assert not pn.grad(lambda v: pn.grad(cubes)(v).sum())(w).requires_grad


def test_what_nothing_depends_on(device: torch.device) -> None:
    """The inner gradient by an unused leaf is a constant zero, also where an inner loop computes its steps again."""
    p = {name: torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device) for name in ("used", "unused")}
    graphs = []

    def loss(p: dict[str, Tensor]) -> Tensor:
        return cubes(p["used"])

    def outer(p: dict[str, Tensor]) -> Tensor:
        inner = pn.grad(loss)(p)
        graphs.append(inner["unused"].requires_grad)
        return inner["used"].sum() + inner["unused"].sum()

    pn.grad(outer)(p)
    assert graphs == [False]
    loops = [pn.meta.inner_loop(loss, pn.optim.sgd(0.1), 2, remat=remat) for remat in (False, True)]
    plain, again = (pn.grad(lambda p, adapt=adapt: loss(adapt(p)[0]))(p) for adapt in loops)
    assert pn.tree.allclose(again, plain, rtol=0, atol=1e-12)


def test_graph_for_outside(device: torch.device) -> None:
    """Where an argument or something closed over requires grad, the gradient has a graph of plain autograd."""
    w = torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device, requires_grad=True)
    scale = torch.tensor(2.0, dtype=DOUBLE, device=device, requires_grad=True)
    (by_argument,) = torch.autograd.grad(pn.grad(cubes)(w).sum(), w)
    assert torch.equal(by_argument, 6 * w.detach())
    (by_closure,) = torch.autograd.grad(pn.grad(lambda v: scale * cubes(v))(w.detach()).sum(), scale)
    assert torch.equal(by_closure, (3 * w.detach() ** 2).sum())


def test_no_grad_within(device: torch.device) -> None:
    """A gradient under torch.no_grad is a constant for the gradient around."""
    w = torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device)

    def outer(w: Tensor) -> Tensor:
        with torch.no_grad():
            g = pn.grad(cubes)(w)
        return (w * g).sum()

    assert torch.equal(pn.grad(outer)(w), 3 * w**2)


@pytest.mark.parametrize("start", [lambda w: w, lambda w: w * 1, lambda w: w.detach()])
def test_writes_are_refused(start: object) -> None:
    """A function that writes into its argument is refused in an inner gradient as well."""

    def writing(v: Tensor) -> Tensor:
        v.mul_(2)
        return v.sum()

    with pytest.raises(MutationError, match="writes in place into a parameter that is being differentiated"):
        pn.grad(lambda w: pn.grad(writing)(start(w)).sum())(torch.ones(2))


def test_gradients_in_compiled_loops(device: torch.device) -> None:
    """The body of a compiled loop may take gradients, whatever differentiates the loop."""
    w, x = (torch.randn(3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(n)).to(device) for n in (0, 1))

    def descended(w: Tensor, x: Tensor) -> Tensor:
        def body(w: Tensor, _: None) -> tuple[Tensor, Tensor]:
            value, g = pn.value_and_grad(lambda w: (w * x).tanh().exp().sum())(w)
            return w - 0.1 * g, value

        last, values = pn.scan(body, w, None, 3)
        return last.sin().sum() + values.sum()

    transforms = {
        "grad": lambda f: pn.grad(f),
        "vmap of grad": lambda f: pn.vmap(pn.grad(f)),
        "grad of vmap": lambda f: pn.grad(lambda w, x: pn.vmap(f)(w, x).sum()),
        "second": lambda f: pn.grad(lambda w, x: pn.grad(f)(w, x).sin().sum()),
    }
    for name, transform in transforms.items():
        eager, compiled = transform(descended), pn.jit(transform(descended), backend="eager")
        torch.testing.assert_close(compiled(w, x), eager(w, x), rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_through_a_compiled_gradient(device: torch.device) -> None:
    """What is differentiated outside of a jitted function has the right second derivatives."""
    w = torch.tensor([0.3, 0.7], dtype=DOUBLE, device=device, requires_grad=True)
    jitted = pn.jit(lambda w: pn.grad(lambda v: v.tanh().exp().sum())(w).sum(), backend="aot_eager")
    (found,) = torch.autograd.grad(jitted(w), w)
    expected = pn.grad(lambda w: pn.grad(lambda v: v.tanh().exp().sum())(w).sum())(w.detach())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
