"""Small containers for the tests of `purenn.tree`."""

from typing import Any

import torch
from torch import Tensor

import purenn as pn


@pn.container
class Affine(pn.Layer):
    """Two tensors, the second of which may be absent: the fast path of the registry."""

    weight: Tensor
    bias: Tensor | None = None


@pn.applies(Affine)
def affine(p: Affine, x: Tensor) -> Tensor:
    """The product with the weight, plus the bias."""
    return torch.nn.functional.linear(x, p.weight, p.bias)


@pn.container
class Scale(pn.Layer):
    """A single child and an option."""

    factor: Tensor
    power: int = pn.static(default=1)


@pn.applies(Scale)
def scale(p: Scale, x: Tensor) -> Tensor:
    """The input times a power of the factor."""
    return p.factor**p.power * x


@pn.container
class Count(pn.Layer):
    """A stateful layer: it counts in a buffer how often it was called for training."""

    gain: Tensor
    calls: Tensor = pn.buffer()


@pn.applies(Count, stateful=True)
def count(p: Count, x: Tensor, *, train: bool = False) -> tuple[Tensor, Count]:
    """The input times the gain, and the container with the new count."""
    return p.gain * x, pn.replace(p, calls=p.calls + 1) if train else p


@pn.container
class Chain(pn.Layer):
    """Layers one after another."""

    layers: tuple
    name: str = pn.static(default="chain")


@pn.applies(Chain)
def chain(p: Chain, x: Tensor, *, train: bool = False) -> Any:
    """Apply all layers. With stateful members the new container comes too."""
    new = []
    for layer in p.layers:
        if pn.is_stateful(layer):
            x, layer = layer(x, train=train)
        else:
            x = layer(x)
        new.append(layer)
    return (x, pn.replace(p, layers=tuple(new))) if pn.is_stateful(p) else x


@pn.container
class Box(pn.Layer):
    """Children of all kinds: anything, a buffer and two options."""

    content: Any = None
    state: Any = pn.buffer(default=None)
    size: int = pn.static(default=3)
    mode: Any = pn.static(default="plain")


def make_affine(out_features: int = 2, in_features: int = 3, *, bias: bool = True, **options: Any) -> Affine:
    """An affine layer with consecutive numbers as parameters."""
    weight = torch.arange(out_features * in_features, **options).reshape(out_features, in_features) / 7
    return Affine(weight, torch.arange(out_features, **options) / 3 if bias else None)


def make_chain(**options: Any) -> Chain:
    """Two affine layers, 3 -> 4 -> 2, the second without bias."""
    return Chain((make_affine(4, 3, **options), make_affine(2, 4, bias=False, **options)))


def make_tied(**options: Any) -> Chain:
    """Two affine layers of size 3 with their own biases, the weight of the second tied to that of the first."""
    first, second = make_affine(3, 3, **options), make_affine(3, 3, **options)
    return pn.tree.tie(Chain((first, second)), {"layers.1.weight": "layers.0.weight"})


def double(device: torch.device) -> dict[str, Any]:
    """Options for factories: float64 on a device."""
    return {"dtype": torch.float64, "device": device}
