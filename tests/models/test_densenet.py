"""Densely connected networks: published sizes, the same networks in torch.nn, transformations."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from _reference import numbers, same
from torch import Tensor, nn

import purenn as pn
from purenn.errors import ArgumentError
from purenn.models import DenseBlock, DenseNet, Transition, dense_block, densenet


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


class Layer(nn.Module):
    """Normalisation, ReLU and convolution, twice."""

    def __init__(self, n: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))


def densely(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Layers that see all maps before them."""
    maps = [x]
    for layer in layers:
        maps.append(layer(torch.cat(maps, 1)))
    return torch.cat(maps, 1)


class Block(nn.Module):
    """A dense block with its layers in a list."""

    def __init__(self, n: int, number: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(n + i * growth, growth, bottleneck) for i in range(number))

    def forward(self, x: Tensor) -> Tensor:
        return densely(self.layers, x)


class NamedBlock(nn.ModuleDict):
    """A dense block with its layers by name."""

    def __init__(self, n: int, number: int, growth: int) -> None:
        super().__init__({f"denselayer{i + 1}": Layer(n + i * growth, growth, 4) for i in range(number)})

    def forward(self, x: Tensor) -> Tensor:
        return densely(self.values(), x)


class Between(nn.Module):
    """The transition."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(n), nn.Conv2d(n, m, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(torch.relu(self.norm(x))), 2)


class Reference(nn.Module):
    """The network with torchvision's names."""

    def __init__(self, numbers: tuple[int, ...], growth: int, width: int, num_classes: int) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(3, width, 7, 2, 3, bias=False),
            "norm0": nn.BatchNorm2d(width),
            "relu0": nn.ReLU(),
            "pool0": nn.MaxPool2d(3, 2, 1),
        }
        n = width
        for i, number in enumerate(numbers, 1):
            if i > 1:
                parts[f"transition{i - 1}"] = Between(n, n // 2)
                n //= 2
            parts[f"denseblock{i}"] = NamedBlock(n, number, growth)
            n += number * growth
        self.features = nn.Sequential(OrderedDict(parts, norm5=nn.BatchNorm2d(n)))
        self.classifier = nn.Linear(n, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


def test_row_38_parameter_count() -> None:
    """Row 38: the defaults are DenseNet-121, with 7,978,856 parameters and 1024 maps before the head."""
    p = DenseNet.init(pn.random.key(0), device="meta")
    assert pn.tree.count(p) == 7_978_856
    assert p.features["norm5"].num_features == 1024
    assert densenet(p, torch.empty(2, 3, 224, 224, device="meta"))[0].shape == (2, 1000)


def test_row_38_dense_block(device: torch.device) -> None:
    """Row 38: the result has the input's maps first, and `growth` more for each layer."""
    p = DenseBlock.init(key(device), 3, 4, 2, dtype=torch.float64)
    x = numbers(2, 3, 4, 5, device=device)
    y, new = dense_block(p, x, train=True)
    assert y.shape == (2, 3 + 4 * 2, 4, 5)
    assert torch.equal(y[:, :3], x)
    assert [layer.norm1.num_features for layer in p.layers] == [3, 5, 7, 9]
    assert [int(layer.norm1.num_batches_tracked) for layer in new.layers] == [1] * 4


@pytest.mark.parametrize("bottleneck", [1, 4])
def test_blocks_equal_modules(bottleneck: int, device: torch.device, check_equals_module: Callable[..., None]) -> None:
    """Names, outputs, gradients and running averages are those of torch.nn's modules."""
    x = numbers(2, 3, 4, 5, device=device)
    p = DenseBlock.init(key(device), 3, 3, 2, bottleneck=bottleneck, dtype=torch.float64)
    check_equals_module(p, Block(3, 3, 2, bottleneck).to(device).double(), x)
    check_equals_module(Transition.init(key(device), 3, 2, dtype=torch.float64), Between(3, 2).to(device).double(), x)


@pytest.mark.parametrize("blocks", [(2,), (2, 1, 2)])
def test_equals_modules(
    blocks: tuple[int, ...], device: torch.device, check_equals_module: Callable[..., None]
) -> None:
    """So are those of the whole network."""
    p = DenseNet.init(key(device), blocks, growth=2, width=4, num_classes=3, dtype=torch.float64)
    module = Reference(blocks, 2, 4, 3).to(device).double()
    check_equals_module(p, module, numbers(3, 3, 32, 32, device=device), tolerance=1e-9)


def test_promises(device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise: purity, batching, derivatives, compilation, both carriers."""
    check_promises(
        lambda seed: DenseBlock.init(key(device, seed), 2, 2, 1, dtype=torch.float64),
        numbers(2, 2, 2, 3, 3, device=device),
    )
    check_promises(
        lambda seed: DenseNet.init(
            key(device, seed), (1, 1), growth=2, width=2, num_classes=2, bottleneck=1, dtype=torch.float64
        ),
        numbers(2, 2, 3, 12, 12, device=device),
        table=False,
    )


def test_dropout_by_key(device: torch.device) -> None:
    """A key drops new maps, never the input's; without one there is no dropout."""
    p = DenseBlock.init(key(device), 3, 2, 4, dropout=0.5)
    x = torch.randn(2, 3, 6, 6, device=device)
    plain = DenseBlock.init(key(device), 3, 2, 4)
    assert torch.equal(dense_block(p, x)[0], dense_block(plain, x)[0])
    y, _ = dense_block(p, x, key=key(device))
    assert torch.equal(y, dense_block(p, x, key=key(device))[0])
    assert torch.equal(y[:, :3], x)
    assert 0.3 < (y[:, 3:] == 0).float().mean() < 0.7
    whole = DenseNet.init(key(device), (2,), growth=4, width=2, num_classes=3, dropout=0.5)
    images = torch.randn(2, 3, 16, 16, device=device)
    assert not torch.equal(densenet(whole, images, key=key(device))[0], densenet(whole, images)[0])
    same(densenet(whole, images, key=key(device))[0], densenet(whole, images, key=key(device))[0], tolerance=0)


def test_errors(device: torch.device) -> None:
    """A network without blocks is refused."""
    with pytest.raises(ArgumentError) as error:
        DenseNet.init(key(device), ())
    assert str(error.value) == "DenseNet.init: num_layers must say how many layers each block has, got none."
