"""Gradients of forward derivatives of norms, which torch's kernels give wrong."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import purenn as pn
from purenn import ops
from purenn.layers import LayerNorm, layer_norm

DOUBLE = torch.float64
Function = Callable[[Tensor], Tensor]


def _normalised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()


NORMS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "the layer's norm": (lambda x: layer_norm(LayerNorm.init(3, dtype=DOUBLE, device=x.device), x), (-1,)),
    "batch norm": (lambda x: ops.batch_norm(x)[0], (0, 2)),
    "torch's layer norm": (lambda x: F.layer_norm(x, (3,)), (-1,)),
    "torch's batch norm": (lambda x: F.batch_norm(x, None, None, training=True), (0, 2)),
    "torch's instance norm": (F.instance_norm, (-1,)),
}


@pytest.mark.parametrize("name", NORMS)
def test_reverse_over_forward(device: torch.device, name: str) -> None:
    """By pn.grad, by plain autograd around, and compiled; the direction depends on the input or not."""
    norm, dims = NORMS[name]
    x = torch.randn(4, 2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).to(device)

    def outer(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(pushed(leaf), leaf)[0]

    for direction in (torch.cos, torch.ones_like):

        def of(f: Function, x: Tensor, direction: Function = direction) -> Tensor:
            return pn.jvp(lambda x: f(x.sin() * x), (x,), (direction(x),))[1].sin().sum()

        expected = pn.grad(lambda x, of=of: of(lambda y: _normalised(y, dims), x))(x)
        pushed = lambda x, of=of: of(norm, x)  # noqa: E731
        for found in (pn.grad(pushed), pn.jit(pn.grad(pushed), backend="eager"), outer):
            torch.testing.assert_close(found(x), expected, rtol=1e-8, atol=1e-10)
