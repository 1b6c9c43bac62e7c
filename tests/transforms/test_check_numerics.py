"""`check_numerics` names the layer that makes a NaN or an infinity."""

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import NumericsError, TransformError
from purenn.layers import Lambda, Linear, Sequential, Tanh, sequential


def make(device: torch.device, fault: object) -> Sequential:
    """Identity, a function, tanh, nested once."""
    eye = torch.eye(2, device=device)
    return Sequential.named(body=Sequential.of(Linear(eye, None), Lambda(fault)), end=Tanh())


def text_of(call: object, kind: type[Exception] = NumericsError) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def test_finite_values_pass(device: torch.device) -> None:
    """Without a fault, values and gradients are those of the function, under every transformation."""
    p, x = make(device, torch.exp), torch.randn(3, 2, device=device)
    checked = pn.check_numerics(sequential)
    assert torch.equal(checked(p, x), sequential(p, x))

    def loss(f: object) -> object:
        return lambda p, x: f(p, x).square().sum()

    for transform in (
        pn.grad,
        lambda f: pn.vmap(pn.grad(f), (None, 0)),
        lambda f: pn.grad(lambda p, x: pn.vmap(f, (None, 0))(p, x).sum()),
        lambda f: lambda p, x: pn.jvp(lambda x: f(p, x), (x,), (x,))[1],
        pn.hessian,
    ):
        assert pn.tree.allclose(transform(loss(checked))(p, x), transform(loss(sequential))(p, x))


def test_forward_fault(device: torch.device) -> None:
    """The innermost layer whose output is at fault is named, batched or not."""
    p, x = make(device, torch.log), torch.tensor([[1.0, -1.0], [0.0, 1.0]], device=device)
    checked = pn.check_numerics(sequential)
    assert text_of(lambda: checked(p, x)) == (
        "check_numerics: the output of 'layers.body.layers.1' (Lambda), f32[2,2], has 1 NaN and 1 infinities."
    )
    assert text_of(lambda: pn.vmap(checked, (None, 0))(p, x)) == (
        "check_numerics: the output of 'layers.body.layers.1' (Lambda), f32[2], has 1 NaN and 1 infinities."
    )
    assert "(Linear)" in text_of(lambda: checked(p, x / 0))


def test_backward_fault(device: torch.device) -> None:
    """A gradient that is not finite is found though all values are, in reverse of every kind."""
    p, x = make(device, torch.sqrt), torch.tensor([0.0, 1.0], device=device)
    checked = pn.check_numerics(sequential)

    def loss(p: Sequential, x: Tensor) -> Tensor:
        return checked(p, x).sum()

    expected = (
        "check_numerics: the gradient of the output of 'layers.body.layers.0' (Linear), f32[2], has 0 NaN and 1 "
        "infinities."
    )
    assert text_of(lambda: pn.grad(loss)(p, x)) == expected
    assert text_of(lambda: pn.vmap(pn.grad(loss), (None, 0))(p, x[None])) == expected
    leaf = x.clone().requires_grad_()
    value = loss(p, leaf)
    assert text_of(value.backward) == expected


def test_faults_outside_of_layers(device: torch.device) -> None:
    """What the function itself makes of good outputs is checked as well, with its gradient, also without any layer."""
    p, x = make(device, torch.exp), torch.zeros(2, device=device)
    ratio = pn.check_numerics(lambda p, x: (sequential(p, x) * 0).sum().log())
    assert text_of(lambda: ratio(p, x)) == (
        "check_numerics: the output of the function, f32[], has 0 NaN and 1 infinities."
    )
    gradient = pn.check_numerics(pn.grad(lambda x: x.sqrt().sum()))
    assert text_of(lambda: gradient(x)) == (
        "check_numerics: the output of the function, f32[2], has 0 NaN and 2 infinities."
    )
    root = pn.grad(lambda x: pn.check_numerics(torch.square)(x).sqrt().sum())
    assert text_of(lambda: root(x)) == (
        "check_numerics: the gradient of the output of the function, f32[2], has 0 NaN and 2 infinities."
    )


def test_not_inside_jit(device: torch.device) -> None:
    """A traced function has no values, and says so."""
    p, x = make(device, torch.exp), torch.ones(2, device=device)
    assert text_of(lambda: pn.jit(pn.check_numerics(sequential), backend="eager")(p, x), TransformError) == (
        "check_numerics: a traced function has no values to check. Check the function itself, outside of jit."
    )
