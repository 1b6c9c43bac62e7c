"""What a type checker says about the public API. Never run: `test_types.py` has it checked.

Every `assert_type` must hold, and every line with an ignore comment must be an error without it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.layers import BatchNorm1d, Linear, Sequential, Stack, batch_norm, linear

key = pn.random.key(0)
x = torch.ones(4, 3)


@pn.container
class Scale(pn.Layer):
    """A container as users write them."""

    factor: Tensor
    shift: Tensor | None = None
    count: Tensor = pn.buffer(factory=lambda: torch.zeros(()))
    power: int = pn.static(default=1, converter=int, kw_only=True)


@pn.applies(Scale)
def scale(p: Scale, x: Tensor, *, train: bool = False) -> Tensor:
    """The input times a power of the factor."""
    return p.factor**p.power * x


def containers() -> None:
    """Constructors are typed by their fields; fields are read-only."""
    p = Scale(x, power=2)
    assert_type(p, Scale)
    assert_type(p.factor, Tensor)
    assert_type(p.shift, Tensor | None)
    assert_type(p.power, int)
    assert_type(pn.replace(p, factor=x), Scale)
    assert_type(Linear.init(key, 3, 2), Linear)
    assert_type(Linear.init(key, 3, 2).weight, Tensor)
    assert_type(Linear.init(key, 3, 2).bias, Tensor | None)
    Scale()  # pyright: ignore[reportCallIssue]
    Scale(3)  # pyright: ignore[reportArgumentType]
    Scale(x, x, x, 2)  # pyright: ignore[reportCallIssue]
    Scale(x, powre=2)  # pyright: ignore[reportCallIssue]
    p.factor = x  # pyright: ignore[reportAttributeAccessIssue]
    print(p.missing)  # pyright: ignore[reportAttributeAccessIssue]


def functions() -> None:
    """Bound functions keep their signatures; a layer may be called."""
    p = Linear.init(key, 3, 2)
    assert_type(scale(Scale(x), x), Tensor)
    assert_type(linear(p, x), Tensor)
    assert_type(pn.is_stateful(p), bool)
    assert_type(batch_norm(BatchNorm1d.init(3), x, train=True)[0], Tensor)
    p(x)
    linear(p)  # pyright: ignore[reportCallIssue]
    linear(x, p)  # pyright: ignore[reportArgumentType]
    scale(Scale(x), x, trian=True)  # pyright: ignore[reportCallIssue]


def loops_and_ensembles() -> None:
    """Loops keep the type of their carry, branches that of their results, ensembles that of a model."""
    p = Linear.init(key, 3, 2)
    assert_type(pn.scan(lambda c, x: (c.sin(), x), x, x), tuple[Tensor, Any])
    assert_type(pn.cond(True, torch.sin, torch.cos, x), Tensor)
    assert_type(pn.while_loop(lambda c: c.sum() > 0, lambda c: c - 1, x), Tensor)
    assert_type(pn.fori_loop(0, 3, lambda i, c: c * i, x), Tensor)
    assert_type(pn.ensemble(Linear.init)(pn.random.split(key), 3, 2), Linear)
    assert_type(pn.soup(p), Linear)
    assert_type(pn.optim.fit_ensemble(lambda p, x: p(x).sum(), pn.optim.sgd(0.1), p, [(x,)]), tuple[Linear, Tensor])
    assert_type(Stack.init(key, 2, lambda key: Linear.init(key, 3, 3)), Stack)


def trees() -> None:
    """What is done to a tree gives a tree of the same class."""
    p = Linear.init(key, 3, 2)
    assert_type(pn.tree.partition(p), tuple[Linear, Linear])
    assert_type(pn.tree.partition(p, paths=["**.bias"]), tuple[Linear, Linear])
    assert_type(pn.tree.combine(*pn.tree.partition(p)), Linear)
    assert_type(pn.tree.map(torch.zeros_like, p), Linear)
    assert_type(pn.tree.map(lambda w, g: w - g, p, p), Linear)
    assert_type(pn.tree.freeze(p), Linear)
    assert_type(pn.tree.freeze(p, "bias"), Linear)
    assert_type(pn.tree.freeze(p, lambda s: s.instances(Tensor)), Linear)
    assert_type(pn.tree.unfreeze(p, ["bias"]), Linear)
    assert_type(pn.tree.to(p, torch.float64), Linear)
    assert_type(pn.tree.to(p, "meta", dtype=torch.float64), Linear)
    assert_type(pn.tree.tie(p, {"a": "b"}), Linear)
    assert_type(pn.tree.untie(p), Linear)
    assert_type(pn.tree.stack([p, p]), Linear)
    assert_type(pn.tree.unstack(p), tuple[Linear, ...])
    assert_type(pn.tree.select(p), pn.tree.Selection[Linear])
    assert_type(pn.tree.select(p).paths("weight").where(bool), pn.tree.Selection[Linear])
    assert_type(pn.tree.select(p).paths("weight").set(x), Linear)
    assert_type(pn.tree.select(p).instances(Tensor).apply(torch.zeros_like), Linear)
    assert_type(pn.tree.select(p).get(), tuple[Any, ...])
    assert_type(pn.tree.select(p).names, tuple[str, ...])
    tensors = {"a": x, "b": x}
    assert_type(pn.tree.to(tensors, "cpu"), dict[str, Tensor])
    assert_type(pn.tree.stack((tensors, tensors)), dict[str, Tensor])
    assert_type(pn.load("p.safetensors", like=p), Linear)
    assert_type(pn.load("p.safetensors", like=p, paths=["bias"], verify=False), Linear)
    pn.tree.partition(p, path="bias")  # pyright: ignore[reportCallIssue]
    pn.tree.to(p, 3)  # pyright: ignore[reportArgumentType]
    pn.tree.freeze(p, 3)  # pyright: ignore[reportArgumentType]
    pn.load("p.safetensors", p)  # pyright: ignore[reportCallIssue]


def answers() -> None:
    """What is asked about a tree has plain types."""
    p = Linear.init(key, 3, 2)
    assert_type(pn.tree.leaves(p), list[Any])
    assert_type(pn.tree.named_leaves(p), list[tuple[str, Any]])
    assert_type(pn.tree.equal(p, p), pn.tree.Comparison)
    assert_type(pn.tree.allclose(p, p, atol=1e-6).path, str | None)
    assert_type(pn.tree.count(p, trainable=True), int)
    assert_type(pn.tree.device(p), torch.device | None)
    assert_type(pn.tree.is_container(p), bool)
    assert_type(pn.summary(p), pn.tree.Summary)
    assert_type(pn.save(Path("p.safetensors"), p, metadata={"step": "1"}, max_shard_size=10**9), None)
    assert_type(pn.tree.metadata("p.safetensors"), dict[str, str])
    pn.save("p.safetensors", p, metadata={"step": 1})  # pyright: ignore[reportArgumentType]


def loss(p: Linear, x: Tensor, *, scale: float = 1.0) -> Tensor:
    """A scalar function of a model."""
    return scale * linear(p, x).sum()


def loss_and_output(p: Linear, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A scalar function with an auxiliary result."""
    y = linear(p, x)
    return y.sum(), [y]


def transformations() -> None:
    """A gradient has the class of what it is taken of, and the arguments of the function."""
    p = Linear.init(key, 3, 2)
    assert_type(pn.grad(loss)(p, x), Linear)
    assert_type(pn.grad(loss)(p, x, scale=2.0), Linear)
    assert_type(pn.grad(loss_and_output, has_aux=True)(p, x), tuple[Linear, list[Tensor]])
    assert_type(pn.value_and_grad(loss)(p, x), tuple[Tensor, Linear])
    assert_type(pn.value_and_grad(loss_and_output, has_aux=True)(p, x), tuple[tuple[Tensor, list[Tensor]], Linear])
    assert_type(pn.vmap(loss, (None, 0))(p, x), Tensor)
    assert_type(pn.vmap(pn.grad(loss), (None, 0))(p, x), Linear)
    assert_type(pn.vmap(lambda k: Linear.init(k, 3, 2))(pn.random.split(key, 5)), Linear)
    pn.vjp(lambda p: linear(p, x), p)[1](x)
    pn.jvp(lambda p: linear(p, x), (p,), (p,))
    for jacobian in (pn.jacrev(linear), pn.jacfwd(linear), pn.hessian(loss)):
        jacobian(p, x)
    pn.grad(loss)(p)  # pyright: ignore[reportCallIssue]
    pn.grad(loss)(x, p)  # pyright: ignore[reportArgumentType]
    pn.grad(loss)(p, x, scael=2.0)  # pyright: ignore[reportCallIssue]


def optimisers() -> None:
    """An optimiser keeps the class of the parameters."""
    p = Linear.init(key, 3, 2)
    for optimizer in (pn.optim.adam(1e-3), pn.optim.sgd(lambda step: 0.1 / (1 + step)), pn.optim.sophia(1e-3)):
        assert_type(optimizer, pn.optim.GradientTransformation)
        assert_type(optimizer.init(p), Any)
        assert_type(optimizer.update(p, optimizer.init(p), p), tuple[Any, Any])
        assert_type(optimizer.step(p, p, optimizer.init(p)), tuple[Linear, Any])
        assert_type(optimizer.step(p, p, optimizer.init(p), donate=True)[0], Linear)
    assert_type(pn.optim.apply_updates(p, p), Linear)
    assert_type(pn.optim.chain(pn.optim.clip_by_global_norm(1.0)), pn.optim.GradientTransformation)
    assert_type(pn.optim.masked(pn.optim.add_decayed_weights(x), "bias"), pn.optim.GradientTransformation)
    assert_type(pn.optim.inject_hyperparams(pn.optim.adamw)(1e-3), pn.optim.GradientTransformation)
    assert_type(pn.optim.global_norm(p), Tensor)
    assert_type(pn.optim.observe_curvature(pn.optim.SophiaState(x, p, p), p), pn.optim.SophiaState)
    pn.optim.adam("fast")  # pyright: ignore[reportArgumentType]
    pn.optim.adam(1e-3, beta1=0.9)  # pyright: ignore[reportCallIssue]
    pn.optim.adam(1e-3).step(p, p)  # pyright: ignore[reportCallIssue]
    pn.optim.inject_hyperparams(pn.optim.adamw)(1e-3, decay=0.1)  # pyright: ignore[reportCallIssue]
    pn.optim.multi_transform([("bias", 0.1)])  # pyright: ignore[reportArgumentType]


def meta_learning() -> None:
    """Implicit functions keep their signature, estimates come as a value and a gradient."""
    p = Linear.init(key, 3, 2)
    assert_type(pn.implicit(scale, root=lambda y, p, x: y - x)(Scale(x), x), Tensor)
    assert_type(pn.implicit(linear, fixed_point=linear)(p, x), Tensor)
    assert_type(pn.meta.evolution_gradient(loss, std=0.1)(key, p, x), tuple[Tensor, Any])
    pes = pn.meta.persistent_evolution(lambda p, w: (w, w), std=0.1)
    assert_type(pes, pn.meta.PersistentEvolution)
    assert_type(pes.init(p, x), pn.meta.PersistentState)
    assert_type(pes.estimate(key, p, pes.init(p, x)), tuple[Tensor, Any, pn.meta.PersistentState])
    assert_type(pn.meta.MLPOptimizer.init(key), pn.meta.MLPOptimizer)
    assert_type(pn.meta.mlp_optimizer(pn.meta.MLPOptimizer.init(key)), pn.optim.GradientTransformation)
    assert_type(pn.meta.lstm_optimizer(pn.meta.LSTMOptimizer.init(key)), pn.optim.GradientTransformation)
    pn.implicit(linear, solver="cg")(x, p)  # pyright: ignore[reportArgumentType]
    pn.implicit(linear, "cg")  # pyright: ignore[reportCallIssue]
    pn.meta.mlp_optimizer(p)  # pyright: ignore[reportArgumentType]


def randomness() -> None:
    """Keys and draws are tensors."""
    assert_type(pn.random.key(0), Tensor)
    assert_type(pn.random.split(key, 3), Tensor)
    assert_type(pn.random.fold_in(key, 3), Tensor)
    assert_type(pn.random.normal(key, (3, 2), dtype=torch.float64), Tensor)


def modules() -> None:
    """The bridge makes modules of containers."""
    p = Sequential.of(Linear.init(key, 3, 2))
    assert_type(p, Sequential)
    assert_type(bridge.to_module(p), bridge.Module)
    module: nn.Module = bridge.to_module(p)
    apply: Callable[..., Any] = bridge.from_module(module)
    apply(x)
