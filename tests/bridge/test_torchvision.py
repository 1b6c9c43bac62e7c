"""`bridge.from_module` and `bridge.convert` on small models of torchvision, if that is installed."""

import copy
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, nn

import bridge
import purenn as pn

try:
    from torchvision import models
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.efficientnet import MBConvConfig
    from torchvision.models.mobilenetv3 import InvertedResidualConfig
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
except (ImportError, RuntimeError) as error:
    # Its wheels for CUDA do not load beside torch for the CPU.
    pytest.skip(f"torchvision: {error}", allow_module_level=True)

CLASSES = {"num_classes": 3}
_WINDOWS: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], **CLASSES}
_WINDOWS |= {"window_size": [2, 2], "stochastic_depth_prob": 0.5}


def mobilenet() -> nn.Module:
    settings = [
        InvertedResidualConfig(8, 3, 16, 8, True, "RE", 1, 1, 1),
        InvertedResidualConfig(8, 5, 24, 16, True, "HS", 2, 1, 1),
    ]
    return models.MobileNetV3(settings, 16, **CLASSES)


def efficientnet() -> nn.Module:
    return models.EfficientNet([MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)], 0.2, 0.5, **CLASSES)


def convnext() -> nn.Module:
    return models.ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], 0.5, layer_scale=0.1, **CLASSES)


def vision_transformer() -> nn.Module:
    made = models.VisionTransformer(32, 16, 2, 2, 16, 20, dropout=0.5, **CLASSES)
    nn.init.normal_(made.heads.head.weight)
    return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], **CLASSES),
    "DenseNet": lambda: models.DenseNet(8, (2, 2), 8, drop_rate=0.5, **CLASSES),
    "MobileNetV3": mobilenet,
    "EfficientNet": efficientnet,
    "ConvNeXt": convnext,
    "VisionTransformer": vision_transformer,
    "SwinTransformer": lambda: models.SwinTransformer(**_WINDOWS),
    "SwinTransformerV2": lambda: models.SwinTransformer(
        **_WINDOWS, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    ),
}


def output(p: Any, x: Tensor, **options: Any) -> Tensor:
    out = p(x, **options)
    return out[0] if pn.is_stateful(p) else out


def loss(p: Any, x: Tensor) -> Tensor:
    return output(p, x).square().sum()


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("make", [bridge.from_module, bridge.convert], ids=["from_module", "convert"])
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, make: Callable[..., Any], device: torch.device) -> None:
    """Values, gradients, per-sample gradients, ensembles and training steps are those of the model and of loops."""
    torch.manual_seed(0)
    model = MODELS[name]().to(device, torch.float64).eval()
    x = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64).to(device)
    p = make(model)
    close(output(p, x[0]), model(x[0]).detach())
    per_sample = pn.vmap(pn.grad(loss), (None, 0))(p, x)
    of_model = bridge.report(model).paths if make is bridge.convert else {}
    for number, batch in enumerate(x):
        model.zero_grad()
        model(batch).square().sum().backward()
        found = dict(pn.tree.named_leaves(per_sample))
        for path, parameter in model.named_parameters():
            close(found[of_model.get(path, path)][number], parameter.grad)
    several = [p, pn.tree.map(lambda leaf: leaf * 1.1 if leaf.is_floating_point() else leaf, p)]
    expected = torch.stack([loss(q, batch) for q, batch in zip(several, x, strict=True)])
    close(pn.vmap(loss, (0, 0))(pn.tree.stack(several), x), expected)
    trains(model, make, x[0])


def trains(model: nn.Module, make: Callable[..., Any], x: Tensor) -> None:
    """In training mode, without what is random in them, container and model give the same values and averages."""
    steady = copy.deepcopy(model).train()
    for part in steady.modules():
        for name in ("p", "drop_rate", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    p = make(steady)
    found = p(x, train=True)
    y, new = found if pn.is_stateful(p) else (found, p)
    close(y, steady(x).detach())
    state = bridge.state_dict(new)
    buffers = dict(steady.named_buffers())
    if make is bridge.from_module:
        close(
            {name: state[name] for name in buffers if name in state}, {n: b for n, b in buffers.items() if n in state}
        )
    assert optree.tree_structure(new) == optree.tree_structure(p)
