"""A network with everything that a carrier must carry: nesting, tuples, dicts, state, randomness, options."""

from typing import Any

import torch
from torch import Tensor

import purenn as pn
from purenn.layers import BatchNorm1d, Dropout, Linear, batch_norm, dropout, linear


@pn.container
class Block(pn.Layer):
    """Linear, batch norm, ReLU, dropout."""

    fc: Linear
    norm: BatchNorm1d
    drop: Dropout

    @property
    def width(self) -> int:
        return self.fc.weight.shape[0]

    def normalize(self, h: Tensor, *, train: bool) -> tuple[Tensor, BatchNorm1d]:
        return batch_norm(self.norm, h, train=train)


@pn.applies(Block)
def block(p: Block, x: Tensor, *, key: Tensor | None = None, train: bool = False) -> tuple[Tensor, Block]:
    h, norm = p.normalize(linear(p.fc, x), train=train)
    assert p.width == h.shape[-1]
    return dropout(p.drop, h.relu(), key=key), pn.replace(p, norm=norm)


@pn.container
class Net(pn.Layer):
    """Blocks in a tuple, a head in a dict, bare tensors beside them, and options."""

    blocks: tuple[Block, ...]
    parts: dict[str, Any]
    scales: tuple[Tensor, ...]
    offset: Tensor = pn.buffer()
    absent: Tensor | None = None
    power: int = pn.static(default=1)


@pn.applies(Net)
def net(p: Net, x: Tensor, *, key: Tensor | None = None, train: bool = False) -> tuple[Tensor, Net]:
    blocks = []
    keys = [None] * len(p.blocks) if key is None else pn.random.split(key, len(p.blocks))
    for part, k in zip(p.blocks, keys, strict=True):
        x, new = block(part, x, key=k, train=train)
        blocks.append(new)
    y = linear(p.parts["head"], x) * p.scales[0] + p.offset
    return y**p.power, pn.replace(p, blocks=tuple(blocks))


def make(device: torch.device, *, rate: float = 0.5, seed: int = 0) -> Net:
    """A `Net` 5 -> 4 -> 4 -> 3 in float64."""
    k = pn.random.split(pn.random.key(seed, device), 3)
    blocks = tuple(
        Block(Linear.init(key, n, 4), BatchNorm1d.init(4, device=device), Dropout(rate))
        for key, n in zip(k[:2], (5, 4), strict=True)
    )
    p = Net(
        blocks,
        {"head": Linear.init(k[2], 4, 3), "gain": torch.ones(2, device=device)},
        (torch.full((3,), 2.0, device=device),),
        torch.ones(3, device=device),
        power=2,
    )
    return pn.tree.to(p, torch.float64)


def inputs(device: torch.device, n: int = 6) -> Tensor:
    """`n` rows of five numbers."""
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
