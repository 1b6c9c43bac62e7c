"""The models of the per-sample benchmark in JAX, and their clipped gradients by vmap of grad under jit."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from _per_sample_models import Model
from jax import Array
from torch import Tensor


def clipped(model: Model, bound: float) -> Callable[[], Sequence[Tensor]]:
    """The step; its results are copied to torch, in the order of the module's parameters."""
    names = [name for name, _ in model.module.named_parameters()]
    p = {name: jnp.array(value.detach().cpu().numpy()) for name, value in model.module.named_parameters()}
    x, y = (jnp.array(part.cpu().numpy()) for part in model.batch)
    logits = _logits_of(model)

    def loss(p: dict[str, Array], x: Array, y: Array) -> Array:
        return -jax.nn.log_softmax(logits(p, x[None])[0])[y]

    @jax.jit
    def step(p: dict[str, Array], x: Array, y: Array) -> dict[str, Array]:
        gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(p, x, y)
        norms = jnp.sqrt(sum(jnp.sum(g.reshape(len(x), -1) ** 2, 1) for g in gradients.values()))
        factors = jnp.minimum(1, bound / norms)
        return {name: jnp.tensordot(factors, g, 1) for name, g in gradients.items()}

    def run() -> list[Tensor]:
        found = jax.block_until_ready(step(p, x, y))
        return [torch.from_dlpack(found[name]) for name in names]

    return run


def _logits_of(model: Model) -> Callable[[dict[str, Array], Array], Array]:
    if "embed.weight" in dict(model.module.named_parameters()):
        return _encoder
    return _perceptron if model.batch[0].dim() == 2 else _convolutions


def _linear(p: dict[str, Array], name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _perceptron(p: dict[str, Array], x: Array) -> Array:
    return _linear(p, "4", jax.nn.relu(_linear(p, "2", jax.nn.relu(_linear(p, "0", x)))))


def _convolutions(p: dict[str, Array], x: Array) -> Array:
    def block(x: Array, convolution: str, norm: str) -> Array:
        y = jax.lax.conv_general_dilated(x, p[f"{convolution}.weight"], (1, 1), "SAME")
        y = y + p[f"{convolution}.bias"][:, None, None]
        groups = y.reshape(len(y), 8, -1)
        centred = groups - groups.mean(-1, keepdims=True)
        y = (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(y.shape)
        return jax.nn.relu(y * p[f"{norm}.weight"][:, None, None] + p[f"{norm}.bias"][:, None, None])

    x = block(block(x, "0", "1"), "3", "4")
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return _linear(p, "12", block(x, "7", "8").mean((-2, -1)))


def _encoder(p: dict[str, Array], x: Array) -> Array:
    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    h: Any = p["embed.weight"][x]
    for n in range(sum(name.endswith(".qkv.weight") for name in p)):
        at = f"blocks.{n}."
        qkv = _linear(p, f"{at}qkv", norm(f"{at}norm1", h))
        q, k, v = (part.reshape(*part.shape[:-1], 4, -1).swapaxes(-2, -3) for part in jnp.split(qkv, 3, -1))
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5, -1)
        h = h + _linear(p, f"{at}out", (weights @ v).swapaxes(-2, -3).reshape(h.shape))
        h = h + _linear(p, f"{at}down", jax.nn.gelu(_linear(p, f"{at}up", norm(f"{at}norm2", h)), approximate=False))
    return _linear(p, "head", norm("norm", h).mean(-2))
