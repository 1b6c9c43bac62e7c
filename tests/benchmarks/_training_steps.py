"""Four models and a step of Adam for each: what `jit_models.py` measures. `_jax_models.py` is the same in JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import purenn as pn
from purenn.layers import (
    AdaptiveAvgPool2d,
    Conv2d,
    Embedding,
    Flatten,
    GroupNorm,
    LearnedPosition,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    TransformerEncoder,
)
from purenn.models import MLP, ResNet

LEARNING_RATE = 1e-3


class Training(NamedTuple):
    """A training step and its first arguments.

    Attributes:
        step: ``step(p, state, x, target) -> (p, state, loss)``.
        args: parameters, state of the optimiser, inputs, targets.
    """

    step: Callable[..., Any]
    args: tuple[Any, Any, Tensor, Tensor]


def _training(loss: Callable[..., Any], p: Any, x: Tensor, target: Tensor) -> Training:
    optimizer, stateful = pn.optim.adam(LEARNING_RATE), pn.is_stateful(p)
    differentiate = pn.value_and_grad(loss, has_aux=stateful)

    def step(p: Any, state: Any, x: Tensor, target: Tensor) -> tuple[Any, Any, Tensor]:
        value, grads = differentiate(p, x, target)
        updates, state = optimizer.update(grads, state, p)
        if stateful:
            value, p = value
        return pn.optim.apply_updates(p, updates), state, value

    return Training(step, (p, optimizer.init(p), x, target))


def mlp(device: torch.device) -> Training:
    """An MLP 784-512-256-10 with a batch of 128."""
    model, data, labels = pn.random.split(pn.random.key(0, device), 3)
    x, target = pn.random.normal(data, (128, 784)), pn.random.randint(labels, (128,), low=0, high=10)
    return _training(_classification, MLP.init(model, 784, (512, 256), 10), x, target)


def cnn(device: torch.device) -> Training:
    """Three convolutions with GroupNorm on 32 x 32 x 3, global average, with a batch of 32."""
    model, data, labels = pn.random.split(pn.random.key(0, device), 3)
    k = pn.random.split(model, 4)
    p = Sequential.of(
        *(Conv2d.init(k[0], 3, 32, 3, padding=1), GroupNorm.init(8, 32, device=device), ReLU()),
        *(Conv2d.init(k[1], 32, 64, 3, padding=1), GroupNorm.init(8, 64, device=device), ReLU(), MaxPool2d(2)),
        *(Conv2d.init(k[2], 64, 128, 3, padding=1), GroupNorm.init(8, 128, device=device), ReLU()),
        *(AdaptiveAvgPool2d(1), Flatten(), Linear.init(k[3], 128, 10)),
    )
    x, target = pn.random.normal(data, (32, 3, 32, 32)), pn.random.randint(labels, (32,), low=0, high=10)
    return _training(_classification, p, x, target)


def transformer(device: torch.device) -> Training:
    """An encoder of 4 layers, d = 128, on 64 tokens of 1000, with a batch of 16."""
    model, data, labels = pn.random.split(pn.random.key(0, device), 3)
    k = pn.random.split(model, 4)
    p = {
        "embedding": Embedding.init(k[0], 1000, 128),
        "position": LearnedPosition.init(k[1], 64, 128),
        "encoder": TransformerEncoder.init(
            k[2],
            *(4, 128, 4),
            norm=True,
            dim_feedforward=512,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        ),
        "head": Linear.init(k[3], 128, 1000),
    }

    def loss(p: Any, x: Tensor, target: Tensor) -> Tensor:
        y = p["encoder"](p["position"](p["embedding"](x)))
        return F.cross_entropy(p["head"](y).flatten(0, 1), target.flatten())

    x, target = (pn.random.randint(key, (16, 64), low=0, high=1000) for key in (data, labels))
    return _training(loss, p, x, target)


def resnet18(device: torch.device) -> Training:
    """ResNet-18 for small images with BatchNorm in training, on 32 x 32 x 3, with a batch of 16."""
    model, data, labels = pn.random.split(pn.random.key(0, device), 3)
    p = ResNet.of_depth(model, 18, num_classes=10, small_images=True)

    def loss(p: ResNet, x: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        scores, new = p(x, train=True)
        return F.cross_entropy(scores, target), new

    x, target = pn.random.normal(data, (16, 3, 32, 32)), pn.random.randint(labels, (16,), low=0, high=10)
    return _training(loss, p, x, target)


def _classification(p: Any, x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(p(x), target)


MODELS: dict[str, Callable[[torch.device], Training]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
    "resnet18": resnet18,
}
