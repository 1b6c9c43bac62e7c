"""Classes that `bridge.convert` learns to know, or knows by their bases and names."""

from typing import Any

import pytest
import torch
from _module_inputs import randn
from _torchvision_like import ResNet
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import BridgeError, ContainerError
from purenn.layers import Linear, linear


def names_of(p: Any) -> list[str]:
    return [path for path, _ in pn.tree.named_leaves(p)]


def reasons(module: nn.Module) -> dict[str, str]:
    return {row.path: row.reason for row in bridge.report(module).rows if row.container is None}


class Doubled(nn.Linear):
    """A layer that is not what its base class is."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Residual(nn.Module):
    """A module that its author has a container for."""

    def __init__(self, body: nn.Module, *more: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.more = nn.ModuleList(more)
        self.last = None

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@pn.container
class PureResidual(pn.Layer):
    body: Linear
    more: tuple[Linear, ...]
    last: Linear | None


@pn.applies(PureResidual)
def residual(p: PureResidual, x: Tensor) -> Tensor:
    return x + linear(p.body, x)


def pure(module: Residual, part: Any) -> Any:
    if len(module.more) > 2:
        raise BridgeError("there are more than two more")
    if len(module.more) > 1:
        return module.body.weight
    return PureResidual(part("body"), part("more"), part("last"))


def test_registered_conversion(device: torch.device) -> None:
    """A registered class is native wherever it is, with its parts converted, tied and frozen."""
    bridge.register_conversion(Residual, to=pure)
    body = nn.Linear(3, 3)
    module = nn.Sequential(Residual(body), Residual(nn.Linear(3, 3), body)).to(device, torch.float64)
    body.bias.requires_grad_(False)
    p, x = bridge.convert(module), randn(device, 2, 3)
    assert torch.equal(p(x), module(x))
    assert isinstance(p[0], PureResidual)
    assert p[1].more[0].weight == pn.tree.Alias("layers.0.body.weight")
    assert [row.path for row in bridge.report(module).rows] == ["", "0", "0.body", "1", "1.body", "1.more.0"]
    assert reasons(Residual(Doubled(3, 3))) == {"": "its part 'body' is or has an opaque Doubled, expected Linear"}
    assert reasons(Residual(body, body, body, body)) == {"": "there are more than two more"}
    with pytest.raises(ContainerError) as error:
        bridge.convert(nn.Sequential(nn.Tanh(), Residual(body, body, body)))
    assert str(error.value) == (
        "convert: what is registered for Residual returned a Parameter for '1', expected a container."
    )


class Scaled(nn.Linear):
    """Another constructor, and a method that the base never calls."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2 * width)

    def doubled(self) -> int:
        return 2 * self.in_features


class Block(nn.Sequential):
    """Convolution, norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())


def test_subclasses_with_another_constructor(device: torch.device) -> None:
    """A subclass that changes the constructor only is what its base is; one that changes more stays opaque."""
    module = nn.Sequential(Block(2), nn.Flatten(), Scaled(8)).to(device, torch.float64).eval()
    assert reasons(module) == {}
    x = randn(device, 3, 2, 4, 4)
    assert torch.equal(bridge.convert(module)(x)[0], module(x))
    assert reasons(Doubled(2, 2)) == {"": "a subclass of Linear may differ from it"}


class Shifted(nn.Module):
    """A module of parameters, a buffer and a part, whose author knows both ways."""

    def __init__(self, body: nn.Module, shift: nn.Parameter, count: Tensor) -> None:
        super().__init__()
        self.body, self.shift = body, shift
        self.register_buffer("count", count)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shift * self.count


@pn.container
class PureShifted(pn.Layer):
    body: Linear
    shift: Tensor
    count: Tensor = pn.buffer()


@pn.applies(PureShifted)
def shifted(p: PureShifted, x: Tensor) -> Tensor:
    return linear(p.body, x) + p.shift * p.count


def shifted_back(p: PureShifted, part: Any) -> Shifted:
    return Shifted(part("body"), part("shift"), part("count"))


def test_conversion_back(device: torch.device) -> None:
    """With a way back containers become modules of the class, alone and as parts, with ties and frozen leaves."""
    bridge.register_conversion(
        Shifted,
        to=lambda module, part: PureShifted(part("body"), module.shift, module.count),
        back=shifted_back,
    )
    module = Shifted(nn.Linear(3, 3), nn.Parameter(torch.ones(3)), torch.ones(3)).to(device, torch.float64)
    module.body.bias = module.shift
    module.shift.requires_grad_(False)
    p, x = bridge.convert(module), randn(device, 2, 3)
    again = bridge.to_module(p)
    assert type(again) is Shifted
    assert again.body.bias is again.shift
    assert not again.shift.requires_grad
    assert list(again.state_dict()) == list(module.state_dict())
    assert torch.equal(again(x), module(x))
    assert pn.tree.equal(bridge.convert(again), p)
    whole = bridge.to_module(pn.layers.Sequential.of(p, pn.layers.Tanh()))
    assert type(whole.layers[0]) is Shifted
    fired: list[str] = []
    handle = whole.layers[0].register_forward_hook(lambda *_: fired.append("hook"))
    assert torch.equal(whole(x), module(x).tanh())
    handle.remove()
    assert fired == ["hook"]
    assert isinstance(bridge.convert(whole)[0], PureShifted)
    assert torch.equal(bridge.from_module(whole)(x), module(x).tanh())


def test_residual_networks_of_torchvision(device: torch.device) -> None:
    """They are known by the names of their classes, and become native throughout, with the same keys."""
    module = ResNet(widths=(4, 8, 8, 8), blocks=1, classes=5).to(device, torch.float64)
    assert reasons(module) == {}
    p, x = bridge.convert(module), randn(device, 2, 3, 64, 64)
    assert isinstance(p, pn.models.ResNet)
    assert sorted(names_of(p)) == sorted(module.state_dict())
    torch.testing.assert_close(p(x)[0], module.eval()(x), rtol=0, atol=1e-12)
    y, new = p(x, train=True)
    torch.testing.assert_close(y, module.train()(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(new.layer3[0].bn1.running_var, module.layer3[0].bn1.running_var, rtol=0, atol=1e-12)
    module.layer2[0].relu = nn.Tanh()
    assert reasons(module.layer2) == {"0": "its relu is another function"}
    assert reasons(module)[""].startswith("its part 'layer2' is or has an opaque BasicBlock, expected BasicBlock")
