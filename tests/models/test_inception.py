"""The Inception module: published shape and names, the same module in torch.nn, transformations."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from _reference import numbers
from torch import Tensor, nn

import purenn as pn
from purenn.errors import ShapeError
from purenn.models import Inception, inception


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


class Convolution(nn.Module):
    """A convolution without bias, its normalisation, a ReLU."""

    def __init__(self, n: int, m: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, m, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(m, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Reference(nn.Module):
    """The module with the public names."""

    def __init__(self, n: int, pool_features: int = 32) -> None:
        super().__init__()
        self.branch1x1 = Convolution(n, 64, 1)
        self.branch5x5_1 = Convolution(n, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(n, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3)
        self.branch_pool = Convolution(n, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(F.avg_pool2d(x, 3, 1, 1)),
            ],
            1,
        )


def test_row_36_shape_and_branches() -> None:
    """Row 36: [2, 256, 32, 32] becomes [2, 256, 32, 32], with branches of 64, 64, 96 and 32 channels."""
    p = Inception.init(pn.random.key(0), 256, device="meta")
    y, _ = inception(p, torch.empty(2, 256, 32, 32, device="meta"), train=True)
    assert y.shape == (2, 256, 32, 32)
    ends = (p.branch1x1, p.branch5x5_2, p.branch3x3dbl_3, p.branch_pool)
    assert [end.conv.out_channels for end in ends] == [64, 64, 96, 32]
    assert pn.tree.count(p) == sum(parameter.numel() for parameter in Reference(256).parameters())
    assert pn.tree.count(Inception.init(pn.random.key(0), 192, device="meta")) == 255_904


@pytest.mark.parametrize("pool_features", [1, 5])
def test_equals_modules(pool_features: int, device: torch.device, check_equals_module: Callable[..., None]) -> None:
    """Names, outputs, gradients and running averages are those of torch.nn's modules."""
    p = Inception.init(key(device), 3, pool_features, dtype=torch.float64)
    module = Reference(3, pool_features).to(device).double()
    check_equals_module(p, module, numbers(2, 3, 5, 6, device=device))


def test_promises(device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise: purity, batching, derivatives, compilation, both carriers."""
    check_promises(
        lambda seed: Inception.init(key(device, seed), 2, 1, dtype=torch.float64), numbers(2, 2, 2, 3, 3, device=device)
    )


def test_errors(device: torch.device) -> None:
    """Images with other channels are refused by the first convolution."""
    with pytest.raises(ShapeError) as error:
        inception(Inception.init(key(device), 3), torch.zeros(1, 4, 5, 5, device=device))
    assert str(error.value) == (
        "conv2d: x must be [batch, 3, height, width] or [3, height, width], got shape [1, 4, 5, 5]. If its channels "
        "come last, move them: x.movedim(-1, -3)."
    )
