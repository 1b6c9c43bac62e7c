"""`explain` and `check_grads`: what is differentiated, and whether rightly."""

import pytest
import torch
from _transform_models import DOUBLE, Affine, inputs, loss, make, net
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, GradientError


def test_explain(device: torch.device) -> None:
    """Every leaf has a row: its gradient's norm, or the reason why it has none."""
    p, x = make(device), inputs(device)
    grads = pn.grad(loss)(p, x)
    assert str(pn.explain(loss, p, x)) == (
        f"argument 0, 'first.weight'   differentiated: the gradient's norm is {grads.first.weight.norm():.3g}\n"
        f"argument 0, 'first.bias'     not differentiated: it is frozen (pn.tree.unfreeze)\n"
        f"argument 0, 'first.count'    not differentiated: it is a buffer (declare the field without pn.buffer())\n"
        f"argument 0, 'first.scale'    not differentiated: it is a buffer (declare the field without pn.buffer())\n"
        f"argument 0, 'second.weight'  differentiated: the gradient's norm is {grads.second.weight.norm():.3g}"
    )
    other = {"w": torch.ones(2, device=device), "n": torch.tensor(3, device=device), "k": 4}
    assert str(pn.explain(lambda x, p: x.sum(), x, other, argnums=(0, 1))) == (
        "argument 0       differentiated: the gradient's norm is 3.87\n"
        "argument 1, 'k'  not differentiated: it is 4, no tensor\n"
        "argument 1, 'n'  not differentiated: i64[] has no derivative (cast it to a floating dtype)\n"
        "argument 1, 'w'  differentiated, but the value does not depend on it: zeros"
    )
    constant = pn.explain(lambda p: (torch.ones((), device=device), "aux"), p, has_aux=True)
    assert constant.rows[0][1] == "differentiated, but the value does not depend on it: zeros"
    with pytest.raises(GradientError) as error:
        pn.explain(net, p, x)
    assert str(error.value).startswith("explain: the function must return a scalar tensor, got f64[5,2].")


def test_check_grads_accepts_right_derivatives(device: torch.device) -> None:
    """First and second derivatives of a whole model pass in both modes, with trees as results."""
    p, x = make(device), inputs(device, 2)
    pn.check_grads(net, (p, x))
    pn.check_grads(lambda p: {"y": net(p, x), "n": 3}, (p,), order=1)
    pn.check_grads(pn.grad(loss), (p, x), order=1, modes=("reverse",))


def test_check_grads_names_the_wrong_leaf(device: torch.device) -> None:
    """A wrong derivative is reported with the leaf's path, its mode and the numbers."""
    wrong = pn.custom_vjp(lambda w: w**2)
    wrong.defvjp(lambda w: (w**2, w), lambda w, g: (3 * w * g,))
    p = Affine(torch.ones(2, 3, dtype=DOUBLE, device=device), torch.ones(2, dtype=DOUBLE, device=device))

    def fn(p: Affine) -> Tensor:
        return p.weight.sum() + wrong(p.bias).sum()

    with pytest.raises(GradientError) as error:
        pn.check_grads(fn, (p,), modes="reverse")
    assert str(error.value).startswith(
        "check_grads: the first derivative with respect to argument 0, 'bias', in reverse mode, differs from finite "
        "differences:\nJacobian mismatch for output 0 with respect to input 1"
    )
    pn.check_grads(lambda p: p.weight.square().sum(), (p,))


def test_check_grads_errors(device: torch.device) -> None:
    """Single precision, orders and modes are checked."""
    p = Affine(torch.ones(2, 3, device=device))
    cases = {
        "check_grads: args must be the tuple of the function's arguments, got an Affine: write "
        "pn.check_grads(fn, (p, x)).": lambda: pn.check_grads(lambda p: p.weight, p),
        "check_grads: argument 0, 'weight' is f32[2,3]; finite differences need float64: use pn.tree.to(p, "
        "torch.float64).": lambda: pn.check_grads(lambda p: p.weight, (p,)),
        "check_grads: order must be 1 or 2, got 3.": lambda: pn.check_grads(lambda p: p.weight, (p,), order=3),
        "check_grads: modes must be 'reverse', 'forward' or both, got ('backward',).": lambda: pn.check_grads(
            lambda p: p.weight, (p,), modes=("backward",)
        ),
        "check_grads: modes must be 'reverse', 'forward' or both, got 'both'.": lambda: pn.check_grads(
            lambda p: p.weight, (p,), modes="both"
        ),
    }
    for text, call in cases.items():
        with pytest.raises(ArgumentError) as error:
            call()
        assert str(error.value) == text
    with pytest.raises(GradientError) as error:
        pn.check_grads(lambda p: p.weight.long(), (pn.tree.to(p, DOUBLE),))
    assert str(error.value) == (
        "check_grads: the function returns no floating-point tensor, so nothing can be checked."
    )
