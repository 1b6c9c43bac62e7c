"""The U-Net: published size, images of any size, the same network in torch.nn, transformations."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from _reference import numbers, same
from torch import Tensor, nn

import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.models import ConvBlock, DownBlock, UNet, UpBlock, conv_block, down_block, unet, up_block


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


class Convolutions(nn.Module):
    """Two convolutions without bias, each with a normalisation and a ReLU."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, m, 3, padding=1, bias=False), nn.BatchNorm2d(m)
        self.conv2, self.bn2 = nn.Conv2d(m, m, 3, padding=1, bias=False), nn.BatchNorm2d(m)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Up(nn.Module):
    """Enlarge, join, convolve."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(n, n // 2, 2, 2)
        self.conv = Convolutions(n, n // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], 1))


class Reference(nn.Module):
    """The network with the same names, for sizes that can be halved, or padded first."""

    def __init__(self, n: int, m: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [n, *(width * 2**i for i in range(depth + 1))]
        pairs = list(pairwise(sizes))
        self.down = nn.ModuleList(nn.ModuleDict({"conv": Convolutions(*pair)}) for pair in pairs[:-1])
        self.bottom = Convolutions(*pairs[-1])
        self.up = nn.ModuleList(Up(size) for size in sizes[:1:-1])
        self.out = nn.Conv2d(width, m, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        while x.shape[-1] % 2 ** len(self.down):
            x = F.pad(x, (0, 1))
        while x.shape[-2] % 2 ** len(self.down):
            x = F.pad(x, (0, 0, 0, 1))
        skips = []
        for step in self.down:
            skips.append(step["conv"](x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for step in self.up:
            x = step(x, skips.pop())
        return self.out(x)[:, :, :height, :width]


def test_row_37_parameter_count() -> None:
    """Row 37: from one channel to one channel it has 7,699,009 parameters."""
    p = UNet.init(pn.random.key(0), 1, 1, device="meta")
    assert pn.tree.count(p) == 7_699_009
    assert [block.conv.conv2.out_channels for block in p.down] == [64, 128, 256]
    assert unet(p, torch.empty(1, 1, 64, 64, device="meta"))[0].shape == (1, 1, 64, 64)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 16), (13, 23), (1, 1)])
def test_row_37_any_size(height: int, width: int, device: torch.device) -> None:
    """Row 37: sizes that are not divisible by 8 are padded, and the result is cropped back."""
    p = UNet.init(key(device), 2, 3, width=2)
    x = torch.randn(2, 2, height, width, device=device)
    assert unet(p, x)[0].shape == (2, 3, height, width)
    padded = F.pad(x, (0, -width % 8, 0, -height % 8))
    same(unet(p, x)[0], unet(p, padded)[0][..., :height, :width], tolerance=1e-6)


@pytest.mark.parametrize(("depth", "size"), [(1, (4, 6)), (2, (7, 9)), (3, (8, 11))])
def test_equals_modules(
    depth: int, size: tuple[int, int], device: torch.device, check_equals_module: Callable[..., None]
) -> None:
    """Names, outputs, gradients and running averages are those of torch.nn's modules."""
    p = UNet.init(key(device), 2, 3, width=2, depth=depth, dtype=torch.float64)
    module = Reference(2, 3, 2, depth).to(device).double()
    check_equals_module(p, module, numbers(2, 2, *size, device=device), tolerance=1e-9)


def test_row_37_blocks(device: torch.device) -> None:
    """Row 37: a step down gives the maps before pooling and after it; a step up joins those before it with its own."""
    x = numbers(2, 3, 6, 4, device=device)
    p = DownBlock.init(key(device), 3, 4, dtype=torch.float64)
    (skip, pooled), new = down_block(p, x, train=True)
    expected, conv = conv_block(p.conv, x, train=True)
    same(skip, expected)
    same(pooled, F.max_pool2d(expected, 2))
    assert pn.tree.equal(new, pn.replace(p, conv=conv))
    up = UpBlock.init(key(device), 8, 4, dtype=torch.float64)
    deep = numbers(2, 8, 3, 2, device=device)
    y, _ = up_block(up, deep, skip)
    enlarged = F.conv_transpose2d(deep, up.up.weight, up.up.bias, 2)
    same(y, conv_block(up.conv, torch.cat((skip, enlarged), 1))[0])


def test_promises(device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise: purity, batching, derivatives, compilation, both carriers."""
    check_promises(
        lambda seed: UNet.init(key(device, seed), 1, 1, width=2, depth=1, dtype=torch.float64),
        numbers(2, 2, 1, 3, 4, device=device),
    )


def test_promises_of_blocks(device: torch.device, check_promises: Callable[..., None]) -> None:
    """A block keeps them as well."""
    check_promises(
        lambda seed: ConvBlock.init(key(device, seed), 2, 2, dtype=torch.float64), numbers(2, 2, 2, 3, 3, device=device)
    )


def test_errors(device: torch.device) -> None:
    """A network without steps, and maps that do not fit each other, are refused."""
    with pytest.raises(ArgumentError) as error:
        UNet.init(key(device), 1, 1, depth=0)
    assert str(error.value) == "UNet.init: depth is the number of steps down and must be at least 1, got 0."
    up = UpBlock.init(key(device), 4, 2)
    with pytest.raises(ShapeError) as error:
        up_block(up, torch.zeros(1, 4, 3, 3, device=device), torch.zeros(1, 2, 7, 6, device=device))
    assert str(error.value) == (
        "up_block: skip must have the size [6, 6], twice that of x of shape [1, 4, 3, 3], got shape [1, 2, 7, 6]. Pad "
        "the images to a multiple of 2 for each step down, as unet does."
    )
