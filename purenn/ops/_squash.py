"""The nonlinearities of capsules: they keep a vector's direction and map its length into [0, 1)."""

import torch
from jaxtyping import Float
from torch import Tensor


def squash(s: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """``n / (1 + n^2) * s`` with ``n = |s|`` along `dim`: length ``n^2 / (1 + n^2)``, direction unchanged.

    Value and derivatives of every order are finite at 0 and at any length. Half precision is computed in float32.

    Args:
        s: vectors along `dim`.
        dim: the axis of a vector's components. Default: the last.

    Returns:
        A tensor of the shape and dtype of `s`.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, equation 1.
    """
    x = _single(s)
    n, zero = _lengths(x, dim)
    r = _smaller(n)
    return (torch.where(zero, 0, r / (1 + r.square())) * x).to(s.dtype)


def squash_exponential(s: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """``(1 - exp(-n)) * s / n`` with ``n = |s|`` along `dim`: like n for short vectors, not like its square.

    Value, gradient and second derivatives are finite at 0 and at any length. Half precision is computed in float32.

    Args:
        s: vectors along `dim`.
        dim: the axis of a vector's components. Default: the last.

    Returns:
        A tensor of the shape and dtype of `s`.

    Source:
        Mazzia, Salvetti, Chiaberge: Efficient-CapsNet, 2021, equation 6.
    """
    x = _single(s)
    n, zero = _lengths(x, dim)
    n = torch.where(zero, 0, n)
    # Derivatives of the quotient are differences of powers of 1 / n: for short vectors its series serves.
    short = n < 0.5
    long = torch.where(short, 1, n)
    return (torch.where(short, _series(torch.where(short, n, 0)), -torch.expm1(-long) / long) * x).to(s.dtype)


def _series(n: Tensor) -> Tensor:
    # (1 - exp(-n)) / n = 1 - n / 2 (1 - n / 3 (1 - n / 4 (...))), to float64's precision below one half.
    total = torch.ones_like(n)
    for k in range(14, 1, -1):
        total = 1 - n / k * total
    return total


def pull_squash(s: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of `squash` along the last axis, as a formula: ``f g + f' n (e . g) e`` with ``e = s / n``."""
    n, zero = _lengths(s, -1)
    r = _smaller(n)
    direction = torch.where(zero, 0, s / n)
    along = (direction * gradient).sum(-1, keepdim=True) * direction
    # f' n = n (1 - n^2) / (1 + n^2)^2, which changes only its sign where n becomes 1 / n.
    slope = r * (1 - r.square()) / (1 + r.square()).square()
    return torch.where(zero, 0, r / (1 + r.square()) * gradient + torch.where(n > 1, -slope, slope) * along)


def _single(s: Tensor) -> Tensor:
    return s.float() if s.dtype in (torch.float16, torch.bfloat16) else s


def _lengths(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The lengths of vectors, 1 for those that are zero, and which are."""
    # The norm of x is m |x / m| for any constant m: with the largest component for m no square over- or underflows.
    largest = x.detach().abs().amax(dim, keepdim=True)
    m = torch.where(largest > 0, largest, 1)
    q = (x / m).square().sum(dim, keepdim=True)
    zero = q == 0
    return m * torch.where(zero, 1, q).sqrt(), zero


def _smaller(n: Tensor) -> Tensor:
    # n / (1 + n^2) is the same for n and 1 / n, and the smaller of the two can be squared.
    large = n > 1
    return torch.where(large, 1 / torch.where(large, n, 1), n)
