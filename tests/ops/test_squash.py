"""`squash`: its formula, and finite values and derivatives where the formula written plainly fails."""

import pytest
import torch
from torch.func import grad, hessian, vmap

from purenn.ops import squash


def test_formula(device: torch.device) -> None:
    """It is n / (1 + n^2) s along any axis."""
    s = torch.randn(4, 6, dtype=torch.float64, device=device)
    for dim in (-1, 0):
        n = s.norm(dim=dim, keepdim=True)
        torch.testing.assert_close(squash(s, dim=dim), n / (1 + n.square()) * s, rtol=0, atol=1e-14)


def test_derivatives(device: torch.device) -> None:
    """First and second derivatives agree with finite differences, forward mode included."""
    s = torch.randn(3, 4, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(squash, s, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(squash, s)


def test_zero(device: torch.device) -> None:
    """At zero the value is zero and the first two derivatives are finite."""
    z = torch.zeros(5, dtype=torch.float64, device=device)
    assert torch.equal(squash(z), z)
    assert torch.equal(grad(lambda s: squash(s).sum())(z), z)
    assert hessian(lambda s: squash(s).sum())(z).isfinite().all()
    mixed = torch.stack([z, torch.ones_like(z)])
    assert vmap(grad(lambda s: squash(s).square().sum()))(mixed).isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "value", "tolerance"),
    [
        (torch.float16, 300.0, 1e-3),
        (torch.float16, 6e4, 1e-3),
        (torch.bfloat16, 1e30, 1e-2),
        (torch.float32, 1e30, 1e-6),
        (torch.float64, 1e200, 1e-12),
    ],
)
def test_large_norms(dtype: torch.dtype, value: float, tolerance: float, device: torch.device) -> None:
    """Very long vectors become unit vectors, in the input's dtype, with finite gradients."""
    s = torch.full((4,), value, dtype=dtype, device=device)
    out = squash(s)
    assert out.dtype == dtype
    assert abs(out.double().norm().item() - 1) < tolerance
    assert grad(lambda s: squash(s).sum())(s).isfinite().all()


def test_small_norms(device: torch.device) -> None:
    """Very short vectors neither underflow to NaN nor get infinite gradients."""
    s = torch.full((4,), 1e-30, device=device)
    assert squash(s).isfinite().all()
    assert grad(lambda s: squash(s).sum())(s).isfinite().all()
