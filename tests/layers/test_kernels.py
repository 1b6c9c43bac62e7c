"""Layers and losses that use torch's kernels where nothing transforms: the same numbers as their formulas elsewhere."""

from collections.abc import Callable

import pytest
import torch
from _reference import numbers, same
from torch import Tensor
from torch.autograd import forward_ad

import purenn as pn
from purenn import layers, losses

KEY = 3


def _whole(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(0))


# Function of one tensor, the tensor's shape, its dtype, and how far kernel and formula may be apart.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], torch.dtype, float]] = {
    "hardsigmoid": (layers.Hardsigmoid(), (4, 5), torch.float32, 1e-6),
    "rrelu": (lambda x: layers.rrelu(layers.RReLU(), x, key=_key(x)), (4, 5), torch.float64, 1e-12),
    "fractional_max_pool2d": (
        lambda x: layers.FractionalMaxPool2d(2, output_ratio=0.6)(x, key=_key(x)),
        (2, 3, 7, 6),
        torch.float64,
        1e-12,
    ),
    "fractional_max_pool3d": (
        lambda x: layers.FractionalMaxPool3d((1, 2, 2), output_size=(3, 2, 2))(x, key=_key(x)),
        (3, 4, 5, 6),
        torch.float64,
        1e-12,
    ),
    "multi_margin_loss": (
        lambda x: losses.multi_margin_loss(x, _whole(5, 4).to(x.device), p=2, reduction="none"),
        (4, 5),
        torch.float64,
        1e-12,
    ),
    "multi_label_margin_loss": (
        lambda x: losses.multi_label_margin_loss(x, torch.tensor([[1, 3, -1, 0]] * 3, device=x.device)),
        (3, 4),
        torch.float64,
        1e-12,
    ),
    "ctc_loss": (
        lambda x: losses.ctc_loss(x.log_softmax(-1), _whole(3, 2, 2).to(x.device) + 1, [6, 5], [2, 1]),
        (6, 2, 4),
        torch.float64,
        1e-10,
    ),
    "gaussian_nll_loss": (
        lambda x: losses.gaussian_nll_loss(x, x.detach() + 1, (x - 0.2) * 1e-3, eps=1e-4),
        (4, 5),
        torch.float64,
        1e-12,
    ),
}


def _key(x: Tensor) -> Tensor:
    return pn.random.key(KEY, x.device)


@pytest.mark.parametrize("name", CASES)
def test_kernel_and_formula_agree(name: str, device: torch.device) -> None:
    """Values, gradients, second derivatives, batches of gradients and forward mode."""
    case, shape, dtype, tolerance = CASES[name]

    def function(x: Tensor) -> Tensor:
        # Bent, since most of them are pieces of planes.
        return case(x + x.square() / 10)

    x = (2 * numbers(*shape, device=device)).to(dtype).requires_grad_()
    y = function(x)
    weights = torch.linspace(1, 2, y.numel(), dtype=dtype, device=device).reshape(y.shape)
    expected, pull, *_ = torch.func.vjp(function, x.detach())
    same(y, expected, tolerance=tolerance)
    first = torch.autograd.grad(y, x, weights, retain_graph=True)[0]
    same(first, pull(weights)[0], tolerance=tolerance)
    many = torch.stack([weights, -2 * weights])
    rows = torch.autograd.grad(y, x, many, is_grads_batched=True)[0]
    same(rows, torch.stack([first, -2 * first]), tolerance=tolerance)
    again = torch.autograd.grad(function(x), x, weights, create_graph=True)[0].sin().sum()
    expected = torch.func.grad(lambda x: torch.func.vjp(function, x)[1](weights)[0].sin().sum())(x.detach())
    same(torch.autograd.grad(again, x)[0], expected, tolerance=100 * tolerance)
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(function(forward_ad.make_dual(x.detach(), first))).tangent
    same((along * weights).sum(), first.square().sum(), tolerance=100 * tolerance)
