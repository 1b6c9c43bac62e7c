"""The models of the per-sample benchmark: as containers of purenn and as modules of torch, with the same numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purenn.layers import (
    Conv2d,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    embedding,
    group_norm,
    layer_norm,
    linear,
)
from purenn.layers import conv2d as convolve


class Model(NamedTuple):
    """One model with a batch.

    Attributes:
        logits: ``logits(p, x)`` of a batch.
        p: parameters.
        batch: inputs and targets.
        module: the same as a module of torch.
    """

    logits: Callable[[Any, Tensor], Tensor]
    p: Any
    batch: tuple[Tensor, Tensor]
    module: nn.Module

    def loss(self, p: Any, x: Tensor, y: Tensor) -> Tensor:
        """The loss of one example."""
        return F.cross_entropy(self.logits(p, x[None]), y[None])

    def total(self, p: Any, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, summed."""
        return F.cross_entropy(self.logits(p, x), y, reduction="sum")


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(_mixed(self.qkv(self.norm1(x)), self.heads))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class _Encoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, inner: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, heads, inner) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(-2))


def _mixed(qkv: Tensor, heads: int) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in qkv.chunk(3, -1))
    weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
    return (weights @ v).transpose(-2, -3).flatten(-2)


def _like(module: nn.Module, shape: dict[str, Any]) -> dict[str, Any]:
    # Containers with the module's numbers, in a dict of the module's names.
    tensors = {name: value.detach().clone() for name, value in module.named_parameters()}
    found: dict[str, Any] = {}
    for name, make in shape.items():
        found[name] = make(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
    return found


def mlp(device: torch.device, batch: int = 256) -> Model:
    """784-512-512-10 with ReLU."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).to(
        device
    )
    p = _like(module, dict.fromkeys(("0", "2", "4"), Linear))

    def logits(p: dict[str, Any], x: Tensor) -> Tensor:
        return linear(p["4"], F.relu(linear(p["2"], F.relu(linear(p["0"], x)))))

    x = torch.randn(batch, 784, device=device)
    return Model(logits, p, (x, _targets(batch, device)), module)


def cnn(device: torch.device, batch: int = 64) -> Model:
    """Three convolutions with group normalisation on images of 32x32x3, global average, linear."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    ).to(device)

    def convolution(weight: Tensor, bias: Tensor | None) -> Conv2d:
        return Conv2d(weight, bias, padding=1)

    def norm(weight: Tensor, bias: Tensor | None) -> GroupNorm:
        return GroupNorm(weight, bias, 8)

    shape = {"0": convolution, "1": norm, "3": convolution, "4": norm, "7": convolution, "8": norm, "12": Linear}
    p = _like(module, shape)

    def logits(p: dict[str, Any], x: Tensor) -> Tensor:
        x = F.relu(group_norm(p["1"], convolve(p["0"], x)))
        x = F.max_pool2d(F.relu(group_norm(p["4"], convolve(p["3"], x))), 2)
        x = F.relu(group_norm(p["8"], convolve(p["7"], x)))
        return linear(p["12"], x.mean((-2, -1)))

    x = torch.randn(batch, 3, 32, 32, device=device)
    return Model(logits, p, (x, _targets(batch, device)), module)


def encoder(device: torch.device, batch: int = 32, layers: int = 4, width: int = 128, length: int = 64) -> Model:
    """A transformer encoder with a vocabulary of 1000 and four heads."""
    torch.manual_seed(0)
    module = _Encoder(layers, width, 4, 4 * width, 1000).to(device)

    def norm(weight: Tensor, bias: Tensor | None) -> LayerNorm:
        return LayerNorm(weight, bias, (width,))

    shape: dict[str, Any] = {"embed": lambda weight, _: Embedding(weight)}
    for n in range(layers):
        shape |= {f"blocks.{n}.{name}": norm for name in ("norm1", "norm2")}
        shape |= {f"blocks.{n}.{name}": Linear for name in ("qkv", "out", "up", "down")}
    p = _like(module, shape | {"norm": norm, "head": Linear})

    def logits(p: dict[str, Any], x: Tensor) -> Tensor:
        h = embedding(p["embed"], x)
        for n in range(layers):
            at = f"blocks.{n}."
            mixed = _mixed(linear(p[f"{at}qkv"], layer_norm(p[f"{at}norm1"], h)), 4)
            h = h + linear(p[f"{at}out"], mixed)
            h = h + linear(p[f"{at}down"], F.gelu(linear(p[f"{at}up"], layer_norm(p[f"{at}norm2"], h))))
        return linear(p["head"], layer_norm(p["norm"], h).mean(-2))

    x = torch.randint(0, 1000, (batch, length), device=device)
    return Model(logits, p, (x, _targets(batch, device)), module)


def wide_encoder(device: torch.device) -> Model:
    """The encoder with d=512 and a batch of 16."""
    return encoder(device, 16, width=512)


def _targets(batch: int, device: torch.device) -> Tensor:
    return torch.randint(0, 10, (batch,), device=device)


MODELS: dict[str, Callable[[torch.device], Model]] = {
    "MLP 784-512-512-10, B=256": mlp,
    "CNN 32x32, B=64": cnn,
    "encoder d=128, B=32": encoder,
    "encoder d=512, B=16": wide_encoder,
}
