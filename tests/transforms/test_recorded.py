"""What a compiled graph keeps of how its function ran: without gradients, and at which level of transformation."""

import attrs
import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import TraceError


def _partly(x: Tensor) -> Tensor:
    with torch.no_grad():
        shift = x.sin() * 2
        with torch.enable_grad():
            shift = shift + x.cos()
    return x * shift


def _loop(x: Tensor) -> Tensor:
    return pn.scan(lambda c, _: (_partly(c), None), x, None, length=2)[0]


def _choice(x: Tensor) -> Tensor:
    return pn.cond(x.sum() > 0, _partly, torch.sin, x)


@pytest.mark.parametrize("f", [_partly, _loop, _choice])
def test_what_runs_without_gradients_is_constant(device: torch.device, f: object) -> None:
    """`torch.no_grad` counts in compiled bodies and from outside as it does in eager; tangents pass it as they do."""
    x = torch.tensor([0.3, 0.9], dtype=torch.float64, device=device)
    total = lambda x: f(x).square().sum()  # noqa: E731
    for transformed in (
        pn.grad(total),
        pn.vmap(pn.grad(lambda x: f(x[None]).sum())),
        lambda x: pn.jvp(f, (x,), (x.cos(),)),
        pn.grad(lambda x: pn.grad(total)(x).sin().sum()),
    ):
        found = pn.jit(transformed, backend="eager")(x)
        torch.testing.assert_close(found, transformed(x), rtol=1e-12, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    for backend in ("eager", "aot_eager"):
        (found,) = torch.autograd.grad(pn.jit(total, backend=backend)(leaf), leaf)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class _Holder:
    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def __call__(self, c: Tensor) -> Tensor:
        return c * self.scale


@attrs.frozen
class _Known:
    scale: Tensor

    def __call__(self, c: Tensor) -> Tensor:
        return c * self.scale


def test_tensors_that_cannot_be_found_are_refused(device: torch.device) -> None:
    """A tangent that would be lost in an object is an error; jitted functions and attrs objects are seen."""
    x = torch.tensor([0.3, 0.9], dtype=torch.float64, device=device)
    w = torch.tensor(1.5, dtype=torch.float64, device=device)

    def loop(make: object) -> object:
        def run(w: Tensor) -> Tensor:
            held = make(w)
            return pn.scan(lambda c, _: (held(c), None), x, None, length=2)[0].sum()

        return run

    derivatives = [
        lambda f: lambda w: pn.jvp(f, (w,), (w,)),
        lambda f: lambda w: pn.vmap(pn.grad(f))(torch.stack([w, w * 2])),
    ]
    for derivative in derivatives:
        for make in (_Known, lambda w: pn.jit(lambda c: c * w, backend="eager")):
            f = derivative(loop(make))
            torch.testing.assert_close(pn.jit(f, backend="eager")(w), f(w), rtol=1e-12, atol=1e-12)
        with pytest.raises(TraceError) as error:
            pn.jit(derivative(loop(_Holder)), backend="eager")(w)
        line = _Holder.__call__.__code__.co_firstlineno + 1
        assert str(error.value) == (
            "scan: the body reaches a tensor of a transformation around it through a global variable or an object's "
            f"attribute, where it cannot be found at test_recorded.py:{line} (`return c * self.scale`). Pass it as a "
            f"part of the carry, or refer to it by a local variable of the surrounding function."
        )
