"""A small model with everything that a gradient must leave alone, and references computed by hand."""

import torch
from torch import Tensor

import purenn as pn

DOUBLE = torch.float64


@pn.container
class Affine(pn.Layer):
    """A linear map with an optional bias, an integer buffer, a float buffer and an option."""

    weight: Tensor
    bias: Tensor | None = None
    count: Tensor | None = pn.buffer(default=None)
    scale: Tensor | None = pn.buffer(default=None)
    power: int = pn.static(default=1)


@pn.applies(Affine)
def affine(p: Affine, x: Tensor) -> Tensor:
    y = torch.nn.functional.linear(x, p.weight, p.bias) ** p.power
    return y if p.scale is None else y * p.scale


@pn.container
class Net(pn.Layer):
    """Two maps with a tanh between them."""

    first: Affine
    second: Affine


@pn.applies(Net)
def net(p: Net, x: Tensor) -> Tensor:
    return affine(p.second, torch.tanh(affine(p.first, x)))


def make(device: torch.device, seed: int = 0) -> Net:
    """A `Net` 3 -> 4 -> 2 in float64 with buffers, an absent bias and a frozen bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(device)

    counted = torch.tensor(7, device=device)
    first = Affine(draw(4, 3), draw(4), counted, draw(4), power=2)
    return pn.tree.freeze(Net(first, Affine(draw(2, 4), None)), "first.bias")


def inputs(device: torch.device, n: int = 5, seed: int = 1) -> Tensor:
    """`n` rows of three numbers."""
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(device)


def loss(p: Net, x: Tensor) -> Tensor:
    return net(p, x).square().sum()


def by_hand(p: Net, x: Tensor, *, create_graph: bool = False) -> dict[str, Tensor]:
    """The gradient of `loss` by plain autograd, by path."""
    trained, rest = pn.tree.partition(p)
    leaves = {path: leaf.detach().clone().requires_grad_() for path, leaf in pn.tree.named_leaves(trained)}
    values = iter(leaves.values())
    whole = pn.tree.combine(pn.tree.map(lambda _: next(values), trained), rest)
    gradients = torch.autograd.grad(loss(whole, x), list(leaves.values()), create_graph=create_graph)
    return dict(zip(leaves, gradients, strict=True))
