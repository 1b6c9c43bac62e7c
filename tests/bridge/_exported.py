"""Models to export, with the inputs that they take and what may vary."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.layers import (
    GRU,
    BatchNorm2d,
    Conv2d,
    Dropout,
    DynamicRouting,
    Embedding,
    Flatten,
    Linear,
    ReLU,
    Sequential,
    TransformerEncoderLayer,
)


class Case(NamedTuple):
    """A model, how many rows its inputs have at first, the inputs for a number of rows, and what may vary in them."""

    make: Callable[[], Any]
    inputs: Callable[[int], tuple[Tensor, ...]]
    dynamic: tuple[Any, ...] = ({0: "batch"},)


class Foreign(nn.Module):
    """A module of somebody's own, with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(3, 4, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": self.inner(x, y) * self.scale, "x": x.flip(1)}


def _convolutional() -> Any:
    k = pn.random.split(pn.random.key(0), 2)
    parts = Conv2d.init(k[0], 2, 3, 3), BatchNorm2d.init(3), ReLU(), Dropout(0.5), Flatten()
    return Sequential.of(*parts, Linear.init(k[1], 48, 2))


def _tied() -> Any:
    k = pn.random.split(pn.random.key(0), 2)
    p = Sequential.of(Embedding.init(k[0], 6, 4), Linear.init(k[1], 4, 6))
    return pn.tree.tie(p, {"layers.1.weight": "layers.0.weight"})


def _rows(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (pn.random.normal(pn.random.key(n), (n, *shape)),)


CASES = {
    "convolutional": Case(_convolutional, _rows(2, 6, 6)),
    "recurrent": Case(lambda: GRU.init(pn.random.key(0), 3, 4, batch_first=True), _rows(5, 3)),
    "transformer": Case(
        lambda: TransformerEncoderLayer.init(pn.random.key(0), 8, 2, dim_feedforward=16, batch_first=True),
        lambda n: (pn.random.normal(pn.random.key(n), (n, n + 2, 8)),),
        ({0: "batch", 1: "length"},),
    ),
    "routing": Case(
        lambda: DynamicRouting.init(pn.random.key(0), in_caps=6, out_caps=3, in_dim=4, out_dim=5), _rows(6, 4)
    ),
    "tied": Case(_tied, lambda n: (torch.arange(3 * n).view(n, 3) % 6,)),
    "opaque": Case(
        lambda: bridge.from_module(Foreign()),
        lambda n: (pn.random.normal(pn.random.key(n), (n, 3)), pn.random.normal(pn.random.key(n + 1), (n, 4))),
        ({0: "batch"}, {0: "batch"}),
    ),
}
