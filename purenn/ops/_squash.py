"""The nonlinearity of capsules: it keeps a vector's direction and maps its length into [0, 1)."""

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
    x = s.float() if s.dtype in (torch.float16, torch.bfloat16) else s
    # The norm of x is m |x / m| for any constant m: with the largest component for m no square over- or underflows.
    largest = x.detach().abs().amax(dim, keepdim=True)
    m = torch.where(largest > 0, largest, 1)
    q = (x / m).square().sum(dim, keepdim=True)
    zero = q == 0
    n = m * torch.where(zero, 1, q).sqrt()
    # n / (1 + n^2) is the same for n and 1 / n, and the smaller of the two can be squared.
    large = n > 1
    r = torch.where(large, 1 / torch.where(large, n, 1), n)
    return (torch.where(zero, 0, r / (1 + r.square())) * x).to(s.dtype)
