"""The bridge: applying a ResNet-18 purely, converted and opaque, against the module's own eager call.

python tests/benchmarks/bridged_modules.py [--repeats 31] [--size 64] [--batch 1] [--device cpu]
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# The script's own name is that of the package, which must come first.
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).parent.resolve()]
carry = importlib.import_module("bridge")
sys.path.append(str(Path(__file__).parent))
header, paired, table = (getattr(importlib.import_module("_pairing"), name) for name in ("header", "paired", "table"))
pn = importlib.import_module("purenn")


class BasicBlock(nn.Module):
    """As in torchvision."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride > 1:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet-18, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        for number, (before, channels) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
            blocks = nn.Sequential(BasicBlock(before, channels, 1 + (number > 1)), BasicBlock(channels, channels, 1))
            setattr(self, f"layer{number}", blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


# Under these names the library knows them.
ResNet.__module__ = BasicBlock.__module__ = "torchvision.models.resnet"


def calls(module: nn.Module, train: bool) -> dict[str, Callable[[Tensor], Any]]:
    """The pure ways to apply a module."""
    native, opaque = carry.convert(module), carry.from_module(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def functional(x: Tensor) -> Any:
        copies = {name: value.clone() if "running" in name else value for name, value in tensors.items()}
        return torch.func.functional_call(module, copies, (x,))

    return {
        "converted": lambda x: native(x, train=train),
        "opaque": lambda x: opaque(x, train=train),
        "torch.func.functional_call": functional,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    goals = {"converted": "1.0", "opaque": "1.3", "torch.func.functional_call": ""}
    rows = [["ResNet-18", "mode", "pure", "the module", "ratio", "quartiles", "goal"]]
    for train in (False, True):
        module = ResNet().to(options.device).train(train)
        x = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
        for name, call in calls(module, train).items():
            with torch.no_grad():
                r = paired(partial(call, x), partial(module, x), repeats=options.repeats)
            mode = "training" if train else "evaluation"
            times = [f"{r.first * 1e3:.2f} ms", f"{r.second * 1e3:.2f} ms"]
            rows.append([name, mode, *times, f"{r.ratio:.2f}", f"{r.low:.2f} to {r.high:.2f}", goals[name]])
    print(header(f"Bridge: batch {options.batch}, images of {options.size} x {options.size}", options.device))
    print(table(rows))


if __name__ == "__main__":
    main()
