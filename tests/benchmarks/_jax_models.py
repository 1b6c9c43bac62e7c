"""The models of `_training_steps.py`, their steps and small functions in JAX: Equinox modules, Optax's Adam, `jax.jit`.

Written as is fastest in JAX on a CPU, not as torch has it: images are NHWC and kernels HWIO (here up to 1.4 times as
fast as NCHW), and a linear map's weight is ``[in_features, out_features]`` (gradients 1.5 times as fast). Modules take
whole batches. Each class makes its module of the container's weights, by `of`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from torch import Tensor

NAMES = f"JAX {jax.__version__}, Equinox {eqx.__version__}, Optax {optax.__version__}"
# What a training forward pass gives besides its result: mean and variance of every BatchNorm.
Statistics = list[tuple[Array, Array]]


def runs_on(device_type: str) -> bool:
    """Whether JAX computes there."""
    return jax.default_backend() == {"cuda": "gpu"}.get(device_type, device_type)


def copied(tensor: Tensor) -> Array:
    """A copy of a tensor."""
    return jnp.array(tensor.detach().cpu().numpy(), copy=True)


class Linear(eqx.Module):
    weight: Array
    bias: Array

    @classmethod
    def of(cls, p: Any) -> "Linear":
        return cls(copied(p.weight.T), copied(p.bias))

    def __call__(self, x: Array) -> Array:
        return x @ self.weight + self.bias


class Conv(eqx.Module):
    weight: Array
    bias: Array | None
    stride: int = eqx.field(static=True)

    @classmethod
    def of(cls, p: Any) -> "Conv":
        return cls(copied(p.weight.permute(2, 3, 1, 0)), None if p.bias is None else copied(p.bias), p.stride[0])

    def __call__(self, x: Array) -> Array:
        side = self.weight.shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x, self.weight, (self.stride,) * 2, [(side, side)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y if self.bias is None else y + self.bias


class GroupNorm(eqx.Module):
    weight: Array
    bias: Array
    groups: int = eqx.field(static=True)

    @classmethod
    def of(cls, p: Any) -> "GroupNorm":
        return cls(copied(p.weight), copied(p.bias), p.num_groups)

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        grouped = x.reshape(batch, height, width, self.groups, channels // self.groups)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        var = grouped.var((1, 2, 4), keepdims=True)
        return ((grouped - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(x.shape) * self.weight + self.bias


class LayerNorm(eqx.Module):
    weight: Array
    bias: Array

    @classmethod
    def of(cls, p: Any) -> "LayerNorm":
        return cls(copied(p.weight), copied(p.bias))

    def __call__(self, x: Array) -> Array:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * self.weight + self.bias


class BatchNorm(eqx.Module):
    weight: Array
    bias: Array

    @classmethod
    def of(cls, p: Any) -> "BatchNorm":
        return cls(copied(p.weight), copied(p.bias))

    def __call__(self, x: Array, seen: Statistics) -> Array:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        count = x.size // x.shape[-1]
        seen.append((mean, var * (count / (count - 1))))
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * self.weight + self.bias


class MLP(eqx.Module):
    layers: tuple[Linear, ...]

    @classmethod
    def of(cls, p: Any) -> "MLP":
        return cls((*(Linear.of(block.linear) for block in p.blocks), Linear.of(p.head)))

    def __call__(self, x: Array, seen: Statistics) -> Array:
        *hidden, head = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return head(x)


class CNN(eqx.Module):
    convolutions: tuple[Conv, ...]
    norms: tuple[GroupNorm, ...]
    head: Linear

    @classmethod
    def of(cls, p: Any) -> "CNN":
        return cls(
            tuple(Conv.of(p[n]) for n in (0, 3, 7)), tuple(GroupNorm.of(p[n]) for n in (1, 4, 8)), Linear.of(p[12])
        )

    def __call__(self, x: Array, seen: Statistics) -> Array:
        for n, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = jax.nn.relu(norm(convolution(x)))
            x = max_pool(x) if n == 1 else x
        return self.head(x.mean((1, 2)))


def max_pool(x: Array) -> Array:
    """The maxima of 2 x 2 windows, by a reshape: its gradient is faster on a CPU than that of `reduce_window`."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


class EncoderLayer(eqx.Module):
    norm1: LayerNorm
    projection: Linear
    out: Linear
    norm2: LayerNorm
    linear1: Linear
    linear2: Linear
    heads: int = eqx.field(static=True)

    @classmethod
    def of(cls, p: Any) -> "EncoderLayer":
        attention = p.self_attn
        projection = Linear(copied(attention.in_proj_weight.T), copied(attention.in_proj_bias))
        return cls(
            *(LayerNorm.of(p.norm1), projection, Linear.of(attention.out_proj)),
            *(LayerNorm.of(p.norm2), Linear.of(p.linear1), Linear.of(p.linear2), attention.num_heads),
        )

    def __call__(self, x: Array) -> Array:
        q, k, v = (
            part.reshape(*x.shape[:2], self.heads, -1) for part in jnp.split(self.projection(self.norm1(x)), 3, -1)
        )
        x = x + self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        return x + self.linear2(jax.nn.gelu(self.linear1(self.norm2(x)), approximate=False))


class Transformer(eqx.Module):
    embedding: Array
    position: Array
    layers: tuple[EncoderLayer, ...]
    norm: LayerNorm
    head: Linear

    @classmethod
    def of(cls, p: Any) -> "Transformer":
        return cls(
            *(copied(p["embedding"].weight), copied(p["position"].weight)),
            tuple(EncoderLayer.of(layer) for layer in p["encoder"].layers),
            *(LayerNorm.of(p["encoder"].norm), Linear.of(p["head"])),
        )

    def __call__(self, x: Array, seen: Statistics) -> Array:
        x = self.embedding[x] + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class BasicBlock(eqx.Module):
    conv1: Conv
    bn1: BatchNorm
    conv2: Conv
    bn2: BatchNorm
    downsample: tuple[Conv, BatchNorm] | None

    @classmethod
    def of(cls, p: Any) -> "BasicBlock":
        shortcut = None if p.downsample is None else (Conv.of(p.downsample[0]), BatchNorm.of(p.downsample[1]))
        return cls(Conv.of(p.conv1), BatchNorm.of(p.bn1), Conv.of(p.conv2), BatchNorm.of(p.bn2), shortcut)

    def __call__(self, x: Array, seen: Statistics) -> Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), seen))
        y = self.bn2(self.conv2(y), seen)
        if self.downsample is not None:
            convolution, norm = self.downsample
            x = norm(convolution(x), seen)
        return jax.nn.relu(x + y)


class ResNet(eqx.Module):
    conv1: Conv
    bn1: BatchNorm
    blocks: tuple[BasicBlock, ...]
    fc: Linear

    @classmethod
    def of(cls, p: Any) -> "ResNet":
        blocks = tuple(BasicBlock.of(block) for stage in (p.layer1, p.layer2, p.layer3, p.layer4) for block in stage)
        return cls(Conv.of(p.conv1), BatchNorm.of(p.bn1), blocks, Linear.of(p.fc))

    def __call__(self, x: Array, seen: Statistics) -> Array:
        x = jax.nn.relu(self.bn1(self.conv1(x), seen))
        for block in self.blocks:
            x = block(x, seen)
        return self.fc(x.mean((1, 2)))


_CLASSES: dict[str, Any] = {"mlp": MLP, "cnn": CNN, "transformer": Transformer, "resnet18": ResNet}


def training(name: str, p: Any, x: Tensor, target: Tensor, learning_rate: float) -> tuple[Callable[..., Any], tuple]:
    """A step ``(model, running, state, x, target) -> (model, running, state, loss)``, not jitted, and its arguments.

    Args:
        name: of the model.
        p: our parameters, which are copied.
        x: our inputs; images are NCHW.
        target: our targets.
        learning_rate: of Adam.
    """
    model, optimizer = _CLASSES[name].of(p), optax.adam(learning_rate)
    inputs = copied(x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x)
    labels = copied(target)

    def loss(model: Any, x: Array, target: Array) -> tuple[Array, Statistics]:
        seen: Statistics = []
        scores = model(x, seen)
        return optax.softmax_cross_entropy_with_integer_labels(scores, target).mean(), seen

    def step(
        model: Any, running: Statistics, state: Any, x: Array, target: Array
    ) -> tuple[Any, Statistics, Any, Array]:
        (value, seen), grads = jax.value_and_grad(loss, has_aux=True)(model, x, target)
        updates, state = optimizer.update(grads, state, model)
        running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, running, seen)
        return optax.apply_updates(model, updates), running, state, value

    _, seen = jax.eval_shape(loss, model, inputs, labels)
    running = [(jnp.zeros(mean.shape), jnp.ones(var.shape)) for mean, var in seen]
    return step, (model, running, optimizer.init(model), inputs, labels)


def parameter_count(model: Any) -> int:
    """How many numbers a model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def tiny_layers(number: int, width: int) -> tuple[eqx.nn.Linear, ...]:
    """Linear layers of Equinox's own."""
    return tuple(eqx.nn.Linear(width, width, key=key) for key in jax.random.split(jax.random.key(0), number))


def scale(p: Any) -> Any:
    """Trivial work on many leaves."""
    return jax.tree.map(lambda leaf: leaf * 0.5, p)


def per_sample_gradients(p: tuple[eqx.nn.Linear, ...], x: Array) -> Any:
    """The gradients of every sample's loss by vmap of grad."""

    def loss(p: tuple[eqx.nn.Linear, ...], x: Array) -> Array:
        for layer in p:
            x = jax.nn.relu(layer(x))
        return (x * x).mean()

    return jax.vmap(jax.grad(loss), (None, 0))(p, x)


def jitted(fn: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`jax.jit`; a call returns when everything is computed."""
    run = jax.jit(fn, donate_argnums=donate)

    def finished(*args: Any) -> Any:
        result = run(*args)
        # One execution makes all results, so that one of them tells that it has ended.
        last = result
        while isinstance(last, tuple):
            last = last[-1]
        (last.bias if isinstance(last, eqx.nn.Linear) else last).block_until_ready()
        return result

    return finished
