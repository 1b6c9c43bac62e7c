"""The feature pyramid: shapes, its formula in torch.nn, transformations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import numbers, same
from torch import Tensor, nn

import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.models import FPN, ResNet, fpn, resnet_maps


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


class Reference(nn.Module):
    """The pyramid with the same names, for maps of which each is twice as large as the next."""

    def __init__(self, channels: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(n, out, 1)) for n in channels)
        self.layer_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(out, out, 3, padding=1)) for _ in channels)

    def sums(self, maps: list[Tensor]) -> list[Tensor]:
        """The sums from the top down, the finest first."""
        found: list[Tensor] = []
        for conv, x in list(zip(self.inner_blocks, maps, strict=True))[::-1]:
            y = conv(x)
            if found:
                y = y + found[0].repeat_interleave(2, -1).repeat_interleave(2, -2)
            found.insert(0, y)
        return found

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(conv(y) for conv, y in zip(self.layer_blocks, self.sums(maps), strict=True))


@pn.container
class Detector(pn.Layer):
    """A pyramid on an image and its half, so that there is one input."""

    neck: FPN


@pn.applies(Detector)
def detector(p: Detector, x: Tensor) -> Any:
    return fpn(p.neck, (x, x[..., ::2, ::2]))


def pyramid(device: torch.device, *batch: int) -> list[Tensor]:
    """Maps of 3, 4 and 5 channels, the finest first."""
    return [numbers(*batch, 3 + i, 8 // 2**i, 4 // 2**i, seed=i, device=device) for i in range(3)]


def test_row_38_on_a_resnet_50() -> None:
    """Row 38: on the maps of a ResNet-50 every level has 256 channels and its map's size; one more level is half."""
    backbone = ResNet.of_depth(pn.random.key(0), 50, num_classes=None, device="meta")
    maps, _ = resnet_maps(backbone, torch.empty(1, 3, 224, 224, device="meta"))
    assert [y.shape[1] for y in maps] == [256, 512, 1024, 2048]
    p = FPN.init(pn.random.key(0), [y.shape[1] for y in maps], extra_level=True, device="meta")
    assert pn.tree.count(p) == 256 * (256 + 512 + 1024 + 2048) + 4 * (256 * 256 * 9 + 2 * 256)
    assert [tuple(y.shape) for y in fpn(p, maps)] == [(1, 256, size, size) for size in (56, 28, 14, 7, 4)]


@pytest.mark.parametrize("batch", [(), (2,)])
def test_row_38_equals_modules(batch: tuple[int, ...], device: torch.device) -> None:
    """Row 38: levels and gradients are those of the formula, for a batch and for one example."""
    module = Reference((3, 4, 5), 2).to(device).double()
    p = FPN.init(key(device), (3, 4, 5), 2, dtype=torch.float64)
    assert [path for path, _ in pn.tree.named_leaves(p)] == list(module.state_dict())
    leaves = dict(zip(module.state_dict(), pn.tree.leaves(p), strict=True))
    module.load_state_dict(leaves)
    maps = pyramid(device, *batch)
    same(fpn(p, maps), module(maps))
    got = pn.grad(lambda p: sum(y.sin().sum() for y in fpn(p, maps)))(p)
    expected = torch.autograd.grad(sum(y.sin().sum() for y in module(maps)), list(module.parameters()))
    same(pn.tree.leaves(got), list(expected))


def test_sizes_that_are_not_doubled(device: torch.device) -> None:
    """Coarse maps are enlarged to the fine ones' size, whatever it is; pixels are repeated."""
    p = FPN.init(key(device), (3, 3), 2, dtype=torch.float64)
    fine, coarse = numbers(1, 3, 7, 5, device=device), numbers(1, 3, 3, 2, device=device)
    levels = fpn(p, (fine, coarse))
    assert [tuple(y.shape[2:]) for y in levels] == [(7, 5), (3, 2)]
    rows = torch.tensor([0, 0, 0, 1, 1, 2, 2], device=device)
    columns = torch.tensor([0, 0, 0, 1, 1], device=device)
    (inner,), (outer,) = p.inner_blocks[0], p.layer_blocks[0]
    enlarged = p.inner_blocks[1][0](coarse)[:, :, rows][:, :, :, columns]
    same(levels[0], outer(inner(fine) + enlarged))


def test_extra_level(device: torch.device) -> None:
    """It has every second pixel of the coarsest, the first included."""
    p = FPN.init(key(device), (3, 4, 5), 2, extra_level=True, dtype=torch.float64)
    levels = fpn(p, pyramid(device, 2))
    same(levels[3], torch.nn.functional.max_pool2d(levels[2], 1, 2))
    assert len(fpn(pn.replace(p, extra_level=False), pyramid(device, 2))) == 3


def test_promises(device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise: purity, batching, derivatives, compilation, both carriers."""
    check_promises(
        lambda seed: Detector(FPN.init(key(device, seed), (2, 2), 2, dtype=torch.float64)),
        numbers(2, 1, 2, 4, 3, device=device),
    )
    check_promises(
        lambda seed: Detector(FPN.init(key(device, seed), (2, 2), 2, dtype=torch.float64)),
        numbers(2, 2, 4, 3, device=device),
    )


def test_errors(device: torch.device) -> None:
    """A pyramid on nothing, and another number of maps, are refused."""
    with pytest.raises(ArgumentError) as error:
        FPN.init(key(device), ())
    assert str(error.value) == "FPN.init: in_channels must have the channels of each of the network's maps, got none."
    with pytest.raises(ShapeError) as error:
        fpn(FPN.init(key(device), (3, 4), 2), pyramid(device, 1))
    assert str(error.value) == (
        "fpn: expected 2 maps, the finest first, got 3. Init the pyramid with the channels of all maps that it shall "
        "take."
    )
