"""Residual networks of torchvision, which need not be installed: their classes are known by their names."""

from typing import Any

from torch import nn

from bridge._native import Conversion, Part
from purenn.errors import BridgeError
from purenn.models import BasicBlock, Bottleneck, ResNet


def _residual_network(module: Any, part: Part) -> Any:
    pool = module.avgpool
    if not isinstance(pool, nn.AdaptiveAvgPool2d) or pool.output_size not in (1, (1, 1)):
        raise BridgeError("its avgpool is not that of the published networks")
    _require_relu(module)
    stages = {name: _members(module, part, name) for name in ("layer1", "layer2", "layer3", "layer4")}
    return ResNet(conv1=part("conv1"), bn1=part("bn1"), maxpool=part("maxpool"), fc=part("fc"), **stages)


def _block(cls: Any, fields: tuple[str, ...]) -> Conversion:
    def convert(module: Any, part: Part) -> Any:
        _require_relu(module)
        downsample = None if module.downsample is None else _members(module, part, "downsample")
        return cls(**{name: part(name) for name in fields}, downsample=downsample)

    return convert


def _members(module: Any, part: Part, name: str) -> tuple[Any, ...]:
    members = getattr(module, name)
    if not isinstance(members, nn.Sequential):
        raise BridgeError(f"its part '{name}' is no Sequential")
    return tuple([part(f"{name}.{number}") for number in members._modules])


def _require_relu(module: Any) -> None:
    if type(module.relu) is not nn.ReLU:
        raise BridgeError("its relu is another function")


def torchvision_conversions() -> dict[str, Conversion]:
    """The conversions by the full names of the classes."""
    first = ("conv1", "bn1", "conv2", "bn2")
    return {
        "torchvision.models.resnet.ResNet": _residual_network,
        "torchvision.models.resnet.BasicBlock": _block(BasicBlock, first),
        "torchvision.models.resnet.Bottleneck": _block(Bottleneck, (*first, "conv3", "bn3")),
    }
