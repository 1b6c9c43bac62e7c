"""Residual networks: published sizes and names, the same networks in torch.nn, transformations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import numbers, same
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import ArgumentError
from purenn.models import (
    BasicBlock,
    Bottleneck,
    ResNet,
    ScaledResidualBlock,
    basic_block,
    resnet,
    resnet_maps,
    scaled_residual_block,
)

DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


class ReferenceBlock(nn.Module):
    """Both kinds of blocks with the public names, the shortcut with a 1 x 1 convolution without bias."""

    def __init__(self, n: int, m: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * m if bottleneck else m
        shapes = [(n, m, 1), (m, m, 3), (m, out, 1)] if bottleneck else [(n, m, 3), (m, m, 3)]
        self.number = len(shapes)
        for i, (a, b, size) in enumerate(shapes, 1):
            step = stride if i == (2 if bottleneck else 1) else 1
            self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        if stride > 1 or n != out:
            self.downsample = nn.Sequential(nn.Conv2d(n, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        else:
            self.downsample = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.number + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.number:
                y = torch.relu(y)
        return torch.relu(y + self.downsample(x))


class Reference(nn.Module):
    """A residual network with the public names."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        bottlenecks: bool = False,
        *,
        width: int = 64,
        num_classes: int | None = 1000,
        stem_norm: bool = True,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        size, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(3, width, size, stride, size // 2, bias=not stem_norm)
        self.bn1 = nn.BatchNorm2d(width) if stem_norm else nn.Identity()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        n, self.stages = width, len(blocks)
        for stage, number in enumerate(blocks):
            members = []
            for position in range(number):
                m = width * 2**stage
                members.append(ReferenceBlock(n, m, 2 if stage and not position else 1, bottlenecks))
                n = 4 * m if bottlenecks else m
            self.add_module(f"layer{stage + 1}", nn.Sequential(*members))
        self.fc = None if num_classes is None else nn.Linear(n, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x if self.fc is None else self.fc(x.mean((2, 3)))


def test_row_34_parameter_counts() -> None:
    """Row 34: ResNet-18, 34 and 50 have the published numbers of parameters; 101 and 152, too."""
    published = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
    for depth, number in published.items():
        assert pn.tree.count(ResNet.of_depth(pn.random.key(0), depth, device="meta")) == number


def test_row_34_features_only() -> None:
    """Row 34: without head and stem normalisation [3, 4, 6, 3] has 21,284,608 parameters and makes [1, 512, 7, 7]."""
    p = ResNet.init(pn.random.key(0), [3, 4, 6, 3], num_classes=None, stem_norm=False, device="meta")
    assert pn.tree.count(p) == 21_284_608
    y, new = resnet(p, torch.empty(1, 3, 224, 224, device="meta"), train=True)
    assert y.shape == (1, 512, 7, 7)
    assert isinstance(new, ResNet)


def test_row_35_small_images() -> None:
    """Row 35: the network for small images with two stages and 10 classes has 676,682 parameters."""
    p = ResNet.init(pn.random.key(0), (2, 2), num_classes=10, small_images=True)
    assert pn.tree.count(p) == 676_682
    assert resnet(p, torch.zeros(2, 3, 8, 8))[0].shape == (2, 10)


@pytest.mark.parametrize("depth", DEPTHS)
def test_row_34_public_names(depth: int) -> None:
    """Row 34: leaves have the names and shapes of the public state dicts, and images of 224 pixels 1000 scores."""
    p = ResNet.of_depth(pn.random.key(0), depth, device="meta")
    with torch.device("meta"):
        module = Reference(*DEPTHS[depth])
    expected = {name: value.shape for name, value in module.state_dict().items()}
    assert {path: leaf.shape for path, leaf in pn.tree.named_leaves(p)} == expected
    assert "layer2.0.downsample.0.weight" in expected
    assert ("layer1.0.downsample.1.running_mean" in expected) == (depth == 50)
    assert resnet(p, torch.empty(2, 3, 224, 224, device="meta"))[0].shape == (2, 1000)


def test_resnet_50_equals_modules(device: torch.device) -> None:
    """The whole ResNet-50 gives what torch.nn's modules with the same float64 weights give."""
    p = ResNet.of_depth(key(device), 50, device="meta")
    module = Reference(*DEPTHS[50]).to(device).double().eval()
    for parameter in module.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter, mode="fan_out")
    x = numbers(1, 3, 40, 40, device=device)
    carried = bridge.to_module(p)
    carried.load_state_dict(module.state_dict(), assign=True)
    with torch.no_grad():
        expected = module(x)
        assert expected.std() > 0.1
        same(carried.eval()(x), expected)


TINY: list[dict[str, Any]] = [
    {"blocks": (1, 2), "num_classes": 3},
    {"blocks": (1, 1, 1), "bottlenecks": True, "num_classes": 3},
    {"blocks": (1, 1), "num_classes": None, "stem_norm": False},
    {"blocks": (2, 1), "num_classes": 2, "small_images": True},
]


@pytest.mark.parametrize("options", TINY)
def test_equals_modules(
    options: dict[str, Any], device: torch.device, check_equals_module: Callable[..., None]
) -> None:
    """Names, outputs, gradients and running averages of every form are those of torch.nn's modules."""
    p = ResNet.init(key(device), **options, width=4, dtype=torch.float64)
    x = numbers(3, 3, 16, 16, device=device)
    check_equals_module(p, Reference(**options, width=4).to(device).double(), x, tolerance=1e-9)


@pytest.mark.parametrize("options", TINY[1:])
def test_promises(options: dict[str, Any], device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise: purity, batching, derivatives, compilation, both carriers."""
    check_promises(
        lambda seed: ResNet.init(key(device, seed), **options, width=2, dtype=torch.float64),
        numbers(2, 2, 3, 8, 8, device=device),
        table=False,
    )


BLOCKS: dict[str, Any] = {
    "plain": lambda k, **o: BasicBlock.init(k, 3, 3, **o),
    "shortcut": lambda k, **o: BasicBlock.init(k, 3, 4, stride=2, **o),
    "bottleneck": lambda k, **o: Bottleneck.init(k, 3, 2, **o),
    "scaled": lambda k, **o: ScaledResidualBlock.init(k, 3, **o),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_row_33_promises_of_blocks(name: str, device: torch.device, check_promises: Callable[..., None]) -> None:
    """Row 33: every form of a residual block keeps them, in the whole table of transformations."""
    check_promises(
        lambda seed: BLOCKS[name](key(device, seed), dtype=torch.float64), numbers(2, 2, 3, 4, 4, device=device)
    )


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (3, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_row_33_blocks_equal_modules(
    channels: int, stride: int, bottleneck: bool, device: torch.device, check_equals_module: Callable[..., None]
) -> None:
    """Row 33: with and without the 1 x 1 shortcut, which has no bias, the ReLU comes after the addition."""
    block = Bottleneck if bottleneck else BasicBlock
    p = block.init(key(device), 3, channels, stride=stride, dtype=torch.float64)
    if p.downsample is not None:
        assert p.downsample[0].bias is None
    module = ReferenceBlock(3, channels, stride, bottleneck).to(device).double()
    check_equals_module(p, module, numbers(2, 3, 5, 5, device=device))
    assert (p(numbers(2, 3, 5, 5, device=device))[0] >= 0).all()


def test_row_33_plain_block_has_no_shortcut(device: torch.device) -> None:
    """Row 33: where shapes fit the input itself is added."""
    p = BasicBlock.init(key(device), 3, 3, dtype=torch.float64)
    assert p.downsample is None
    silent = pn.replace(p, bn2=pn.replace(p.bn2, weight=torch.zeros_like(p.bn2.weight)))
    x = numbers(2, 3, 4, 4, device=device)
    same(basic_block(silent, x)[0], x.relu())


def test_row_33_scaled_block(device: torch.device, check_equals_module: Callable[..., None]) -> None:
    """Row 33: with a learnable scale the sum has no ReLU, and a scale of zero leaves the input as it is."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.ones(1, 3, 1, 1)), nn.Parameter(torch.zeros(1, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.bias

    class Block(ReferenceBlock):
        def __init__(self) -> None:
            super().__init__(3, 3, 1, False)
            self.scale = Scale()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))

    p = ScaledResidualBlock.init(key(device), 3, dtype=torch.float64)
    x = numbers(2, 3, 4, 4, device=device)
    assert pn.tree.count(p) == pn.tree.count(BasicBlock.init(key(device), 3, 3)) + 6
    check_equals_module(p, Block().to(device).double(), x)
    zero = pn.replace(p.scale, scale=torch.zeros_like(p.scale.scale), bias=torch.zeros_like(p.scale.bias))
    assert torch.equal(scaled_residual_block(pn.replace(p, scale=zero), x)[0], x)


def test_row_33_inputs_are_not_changed(device: torch.device) -> None:
    """Row 33: nothing happens in place: input, parameters and buffers are the same after a training step."""
    p = ResNet.init(key(device), (1, 1), num_classes=2, width=4)
    x = torch.randn(2, 3, 16, 16, device=device)
    before, copies = x.clone(), [leaf.clone() for leaf in pn.tree.leaves(p)]
    _, new = resnet(p, x, train=True)
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(pn.tree.leaves(p), copies, strict=True))
    assert new.layer1[0].bn1.num_batches_tracked == 1


def test_maps(device: torch.device) -> None:
    """The maps of the four stages halve their size from stage to stage, and the last is what the head sees."""
    p = ResNet.init(key(device), (1, 1, 1, 1), num_classes=None, width=4)
    x = torch.randn(1, 3, 64, 64, device=device)
    maps, _ = resnet_maps(p, x)
    assert [tuple(y.shape) for y in maps] == [(1, 4 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    assert torch.equal(maps[-1], resnet(p, x)[0])


def test_init(device: torch.device) -> None:
    """Keys decide all values; convolutions have a deviation of sqrt(2 / fan-out), normalisations start at 1."""
    p = ResNet.init(key(device), (1, 1), num_classes=3)
    assert pn.tree.equal(p, ResNet.init(key(device), (1, 1), num_classes=3))
    deviation = (2 / (64 * 9)) ** 0.5
    assert abs(p.layer1[0].conv1.weight.std() / deviation - 1) < 0.02
    assert (p.layer2[0].bn2.weight == 1).all()
    half = ResNet.init(key(device), (1,), num_classes=3, dtype=torch.bfloat16)
    assert {leaf.dtype for leaf in pn.tree.leaves(half)} == {torch.bfloat16, torch.int64}


def test_errors(device: torch.device) -> None:
    """Unknown depths and impossible numbers of stages are refused."""
    with pytest.raises(ArgumentError) as error:
        ResNet.of_depth(key(device), 20)
    assert str(error.value) == (
        "ResNet.of_depth: depth must be one of 18, 34, 50, 101, 152, got 20. Use ResNet.init for other numbers of "
        "blocks."
    )
    with pytest.raises(ArgumentError) as error:
        ResNet.init(key(device), (1, 1, 1, 1, 1))
    assert str(error.value) == (
        "ResNet.init: blocks must be the numbers of blocks of 1 to 4 stages, got (1, 1, 1, 1, 1)."
    )
