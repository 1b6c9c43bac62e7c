"""Models against torchvision's own, if that is installed: the same names, and the same results on the same numbers."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import numbers, same
from torch import nn

import purenn as pn
from purenn.models import FPN, DenseNet, Inception, ResNet, ViT, fpn

try:
    from torchvision import models, ops
except (ImportError, RuntimeError) as error:
    # Its wheels for CUDA do not load beside torch for the CPU.
    pytest.skip(f"torchvision: {error}", allow_module_level=True)

KEY = pn.random.key(0)
DOUBLE: dict[str, Any] = {"dtype": torch.float64}
SMALL_VIT: dict[str, Any] = {"image_size": 32, "patch_size": 16, "num_heads": 2, "mlp_dim": 20, "num_classes": 3}

# At their full sizes: a model of ours on a device, and torchvision's.
WHOLE: dict[str, tuple[Callable[..., Any], Callable[[], nn.Module]]] = {
    "resnet18": (lambda **where: ResNet.of_depth(KEY, 18, **where), models.resnet18),
    "resnet34": (lambda **where: ResNet.of_depth(KEY, 34, **where), models.resnet34),
    "resnet50": (lambda **where: ResNet.of_depth(KEY, 50, **where), models.resnet50),
    "densenet121": (lambda **where: DenseNet.init(KEY, **where), models.densenet121),
    "vit_b_16": (lambda **where: ViT.init(KEY, **where), models.vit_b_16),
}

# Small enough to be differentiated: both models, and the shape of their input.
SMALL: dict[str, tuple[Callable[[], Any], Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (
        lambda: ResNet.of_depth(KEY, 18, num_classes=3, **DOUBLE),
        lambda: models.resnet18(num_classes=3),
        (2, 3, 40, 40),
    ),
    "densenet": (
        lambda: DenseNet.init(KEY, (2, 1, 2), growth=4, width=6, num_classes=3, **DOUBLE),
        lambda: models.DenseNet(4, (2, 1, 2), 6, num_classes=3),
        (2, 3, 40, 40),
    ),
    "vit": (
        lambda: ViT.init(KEY, dim=16, depth=2, **SMALL_VIT, **DOUBLE),
        lambda: models.VisionTransformer(num_layers=2, hidden_dim=16, **SMALL_VIT),
        (2, 3, 32, 32),
    ),
    "inception": (
        lambda: Inception.init(KEY, 8, pool_features=5, **DOUBLE),
        lambda: models.inception.InceptionA(8, 5),
        (2, 8, 6, 6),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_names_and_shapes(name: str) -> None:
    """Leaves have the names and shapes of the state dict, all of them and no others."""
    ours, theirs = WHOLE[name]
    with torch.device("meta"):
        expected = {path: x.shape for path, x in theirs().state_dict().items()}
    assert {path: leaf.shape for path, leaf in pn.tree.named_leaves(ours(device="meta"))} == expected


@pytest.mark.parametrize("name", SMALL)
def test_results(name: str, check_equals_module: Callable[..., None]) -> None:
    """Outputs, gradients and running averages are equal in float64."""
    ours, theirs, shape = SMALL[name]
    check_equals_module(ours(), theirs().double(), numbers(*shape), tolerance=1e-9)


def test_pyramid() -> None:
    """So are the levels of a feature pyramid, the extra one too, and its names."""
    p = FPN.init(KEY, (3, 4), 2, extra_level=True, **DOUBLE)
    module = ops.FeaturePyramidNetwork([3, 4], 2, ops.feature_pyramid_network.LastLevelMaxPool()).double()
    assert module.load_state_dict(dict(pn.tree.named_leaves(p))) is not None
    maps = [numbers(2, 3, 7, 6), numbers(2, 4, 3, 3, seed=1)]
    same(list(fpn(p, maps)), list(module(OrderedDict(enumerate(maps))).values()))
