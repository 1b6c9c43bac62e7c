"""Normalisation layers for the tests, each with an input and what makes one tensor of its result."""

from collections.abc import Callable
from typing import Any

import torch
from _reference import weights_like
from torch import Tensor

import purenn as pn
from purenn import layers


def numbers(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """Numbers with a mean and a variance that differ from 0 and 1 in every channel."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * weights_like(x) + 3 * weights_like(x)).to(device)


def randomised(p: Any, seed: int = 0) -> Any:
    """The container in float64 with positive numbers in the place of its floating leaves."""
    generator = torch.Generator().manual_seed(seed)

    def put(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        values = torch.rand(leaf.shape, generator=generator, dtype=torch.float64) + 0.5
        return values.to(leaf.device)

    return pn.tree.map(put, p)


def _with_state(function: Callable[..., Any], train: bool) -> Callable[[Any, Tensor], Tensor]:
    def apply(p: Any, x: Tensor) -> Tensor:
        y, new = function(p, x, train=train)
        if new.running_mean is None:
            return y
        return torch.cat([y.flatten(), new.running_mean, new.running_var])

    return apply


# What makes the layer, the function of (p, x) that makes one tensor of all that it returns, and the shape of x.
NORMS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "batch, training": (lambda: layers.BatchNorm2d.init(3), _with_state(layers.batch_norm, True), (2, 3, 2, 2)),
    "batch, evaluation": (lambda: layers.BatchNorm2d.init(3), _with_state(layers.batch_norm, False), (2, 3, 2, 2)),
    "batch, average of all": (
        lambda: layers.BatchNorm1d.init(3, momentum=None),
        _with_state(layers.batch_norm, True),
        (4, 3),
    ),
    "batch, no averages": (
        lambda: layers.BatchNorm1d.init(3, track_running_stats=False),
        _with_state(layers.batch_norm, False),
        (3, 3, 2),
    ),
    "batch, not affine": (
        lambda: layers.BatchNorm1d.init(3, affine=False),
        _with_state(layers.batch_norm, True),
        (4, 3),
    ),
    "instance": (
        lambda: layers.InstanceNorm1d.init(2, affine=True),
        _with_state(layers.instance_norm, True),
        (2, 2, 4),
    ),
    "instance, averages": (
        lambda: layers.InstanceNorm1d.init(2, affine=True, track_running_stats=True),
        _with_state(layers.instance_norm, True),
        (2, 2, 4),
    ),
    "instance, evaluation": (
        lambda: layers.InstanceNorm1d.init(2, affine=True, track_running_stats=True),
        _with_state(layers.instance_norm, False),
        (2, 4),
    ),
    "layer": (lambda: layers.LayerNorm.init((2, 3)), layers.layer_norm, (2, 2, 3)),
    "unbiased layer": (lambda: layers.UnbiasedLayerNorm.init(4), layers.unbiased_layer_norm, (2, 4)),
    "root mean square": (lambda: layers.RMSNorm.init(4), layers.rms_norm, (3, 4)),
    "group": (lambda: layers.GroupNorm.init(2, 4), layers.group_norm, (2, 4, 3)),
    "running, training": (lambda: layers.RunningNorm.init(3), _with_state(layers.running_norm, True), (4, 3)),
    "running, evaluation": (lambda: layers.RunningNorm.init(3), _with_state(layers.running_norm, False), (4, 3)),
    "centered": (layers.Centered, layers.centered, (3, 4)),
}
