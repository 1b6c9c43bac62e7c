"""The sinusoid meta-gradient in JAX: scanned and unrolled, and with Equinox and Optax."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import optax
from _jax_models import Linear, copied
from _meta_tasks import RATE, Problem
from jax import Array


class MLP(eqx.Module):
    """Three linear maps with relu between."""

    layers: list[Linear]

    def __call__(self, x: Array) -> Array:
        *hidden, head = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return head(x)


def gradients(problem: Problem, steps: int) -> dict[str, Callable[[], Any]]:
    """By name, jitted meta-gradients, which return when they are computed."""
    model = MLP([Linear.of(problem.p[n]) for n in (0, 2, 4)])
    (x, y), (u, v) = (tuple(map(copied, part)) for part in problem.data)
    optimizer = optax.sgd(RATE)

    def loss(model: Any, x: Array, y: Array) -> Array:
        return ((model(x) - y) ** 2).mean()

    def step(model: Any, x: Array, y: Array) -> Any:
        return jax.tree.map(lambda w, g: w - RATE * g, model, jax.grad(loss)(model, x, y))

    def scanned(model: Any, x: Array, y: Array, u: Array, v: Array) -> Array:
        model, _ = jax.lax.scan(lambda m, _: (step(m, x, y), None), model, None, length=steps)
        return loss(model, u, v)

    def unrolled(model: Any, x: Array, y: Array, u: Array, v: Array) -> Array:
        for _ in range(steps):
            model = step(model, x, y)
        return loss(model, u, v)

    def with_optax(model: Any, x: Array, y: Array, u: Array, v: Array) -> Array:
        def one(carry: Any, _: Any) -> Any:
            model, state = carry
            updates, state = optimizer.update(eqx.filter_grad(loss)(model, x, y), state)
            return (eqx.apply_updates(model, updates), state), None

        (model, _), _ = jax.lax.scan(one, (model, optimizer.init(model)), None, length=steps)
        return loss(model, u, v)

    def mean_of_gradients(task_loss: Any) -> Any:
        many = jax.vmap(jax.grad(task_loss), (None, 0, 0, 0, 0))
        return jax.jit(lambda *a: jax.tree.map(lambda g: g.mean(0), many(*a)))

    def gradient_of_mean(task_loss: Any) -> Any:
        many = jax.vmap(task_loss, (None, 0, 0, 0, 0))
        return jax.jit(jax.grad(lambda *a: many(*a).mean()))

    made = {
        "JAX, vmap(grad), scan": mean_of_gradients(scanned),
        "JAX, grad(vmap), scan": gradient_of_mean(scanned),
        "JAX, vmap(grad), unrolled": mean_of_gradients(unrolled),
        "Equinox + Optax, scan": eqx.filter_jit(mean_of_gradients(with_optax)),
    }
    return {name: lambda f=f: jax.block_until_ready(f(model, x, y, u, v)) for name, f in made.items()}
