"""`squash_exponential`: its formula, and finite values and derivatives at zero and at any length."""

import pytest
import torch
from torch.func import grad, hessian, vmap

from purenn.ops import squash_exponential


def test_formula(device: torch.device) -> None:
    """It is (1 - exp(-n)) s / n along any axis, and each vector by itself."""
    s = torch.randn(4, 6, dtype=torch.float64, device=device)
    for dim in (-1, 0):
        n = s.norm(dim=dim, keepdim=True)
        torch.testing.assert_close(squash_exponential(s, dim=dim), (1 - (-n).exp()) * s / n, rtol=0, atol=1e-14)
    torch.testing.assert_close(vmap(squash_exponential)(s), squash_exponential(s), rtol=0, atol=1e-15)


def test_derivatives(device: torch.device) -> None:
    """First and second derivatives agree with finite differences, forward mode included."""
    s = torch.randn(3, 4, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(squash_exponential, s, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(squash_exponential, s)


def test_zero(device: torch.device) -> None:
    """At zero the value is zero, the gradient is the identity, the limit of the formula, and the next one is finite."""
    z = torch.zeros(3, dtype=torch.float64, device=device)
    assert torch.equal(squash_exponential(z), z)
    assert torch.equal(grad(lambda s: squash_exponential(s).sum())(z), torch.ones_like(z))
    assert hessian(lambda s: squash_exponential(s).sum())(z).isfinite().all()


@pytest.mark.parametrize("length", [1e-3, 0.3, 0.6, 2.0])
def test_second_derivatives(length: float, device: torch.device) -> None:
    """They agree with finite differences of the gradient, on both sides of where another formula serves."""
    s = length * torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64, device=device)
    gradient = grad(lambda s: (squash_exponential(s) * torch.tensor([1.0, 2.0, 3.0]).to(s)).sum())
    assert torch.autograd.gradcheck(gradient, s.requires_grad_(), eps=1e-6 * length, atol=1e-7)


@pytest.mark.parametrize(("dtype", "length"), [(torch.float64, 1e-8), (torch.float64, 1e-150), (torch.float32, 1e-15)])
def test_second_derivatives_of_short_vectors(dtype: torch.dtype, length: float, device: torch.device) -> None:
    """They tend to those of ``s - |s| s / 2``, which depend on the direction alone."""
    e = torch.tensor([0.6, 0.8, 0.0], dtype=dtype, device=device)
    one, unit = torch.ones_like(e), torch.eye(3, dtype=dtype, device=device)
    expected = -0.5 * (e.sum() * (unit - e.outer(e)) + e.outer(one) + one.outer(e))
    got = hessian(lambda s: squash_exponential(s).sum())(length * e)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 6e4),
        (torch.bfloat16, 1e30),
        (torch.float32, 1e-30),
        (torch.float32, 1e30),
        (torch.float64, 1e200),
    ],
)
def test_any_length(dtype: torch.dtype, value: float, device: torch.device) -> None:
    """Very long vectors become unit vectors, very short ones stay what they are, with finite gradients."""
    s = torch.full((4,), value, dtype=dtype, device=device)
    out = squash_exponential(s)
    assert out.dtype == dtype
    expected = s.double() if value < 1 else torch.full_like(s, 0.5, dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=0)
    assert grad(lambda s: squash_exponential(s).sum())(s).isfinite().all()
    assert hessian(lambda s: squash_exponential(s).sum())(s).isfinite().all()
