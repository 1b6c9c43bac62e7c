"""Functions of one's own in modules, which are given the module as if it were the container."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _module_inputs import DOUBLE, randn
from torch import Tensor

import bridge
import purenn as pn
from purenn.layers import BatchNorm1d, Dropout, Linear, Sequential, Tanh, sequential


def make(device: torch.device) -> Sequential:
    """Linear, tanh, linear."""
    k = pn.random.split(pn.random.key(0, device), 2)
    parts = Linear.init(k[0], 3, 4, dtype=DOUBLE), Tanh(), Linear.init(k[1], 4, 2, dtype=DOUBLE)
    return Sequential.of(*parts)


def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error."""
    return (p(x) - y).square().mean()


@pytest.mark.parametrize("apply", [sequential, lambda p, x, **options: p(x, **options)], ids=["function", "call"])
def test_applying_what_is_given(apply: Callable[..., Any], device: torch.device) -> None:
    """The whole is applied as its container is: no function of one's own again, each hook once, buffers renewed."""
    linear = Linear.init(pn.random.key(0, device), 3, 4)
    p = Sequential.of(linear, BatchNorm1d.init(4, device=device), Dropout(0.5))

    def rectified(p: Any, x: Tensor, *, train: bool = False, key: Tensor | None = None) -> tuple[Tensor, Any]:
        y, new = apply(p, x, train=train, key=key)
        return y.relu(), new

    module, plain = bridge.to_module(p, rectified, copy=True), bridge.to_module(p, copy=True)
    fired: list[str] = []
    for name, part in module.named_modules():
        part.register_forward_hook(lambda *_, name=name: fired.append(name))
    x = torch.randn(6, 3, device=device)
    for mode in (True, False):
        found, expected = [], []
        for one, results in ((module, found), (plain, expected)):
            torch.manual_seed(0)
            results.append(one.train(mode)(x))
        assert torch.equal(found[0], expected[0].relu())
        assert fired == ["layers.0", "layers.1", "layers.2", ""]
        fired.clear()
    assert pn.tree.equal(bridge.from_module(module), bridge.from_module(plain))


def _by_hand(p: Any, x: Tensor, y: Tensor) -> Any:
    for _ in range(2):
        p = pn.tree.map(lambda w, g: w - 0.1 * g, p, pn.grad(loss)(p, x, y))
    return p


def _by_updates(p: Any, x: Tensor, y: Tensor) -> Any:
    optimizer = pn.optim.adam(0.1)
    updates, _ = optimizer.update(pn.grad(loss)(p, x, y), optimizer.init(p), p)
    return pn.optim.apply_updates(p, updates)


def _in_a_loop(p: Any, x: Tensor, y: Tensor) -> Any:
    return pn.fori_loop(0, 2, lambda _, p: _by_hand(p, x, y), p)


ADAPTATIONS: dict[str, Callable[..., Any]] = {
    "by hand": _by_hand,
    "updates": _by_updates,
    "fori_loop": _in_a_loop,
    "inner_loop": lambda *args: pn.meta.inner_loop(loss, pn.optim.sgd(0.1, momentum=0.9), 3)(*args)[0],
    "remat": lambda *args: pn.meta.inner_loop(loss, pn.optim.adam(0.1), 4, unroll="vjp")(*args)[0],
    "a part": lambda *args: pn.meta.inner_loop(loss, pn.optim.sgd(0.1), 2, select="layers.2.**")(*args)[0],
}


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_adapting_what_is_given(name: str, device: torch.device) -> None:
    """A module that adapts its parameters is meta-trained by torch.optim as the container is by its gradient."""

    def adapted(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return loss(ADAPTATIONS[name](p, x, y), x, y)

    def tasks(p: Any, xs: Tensor, ys: Tensor) -> Tensor:
        return torch.stack([adapted(p, x, y) for x, y in zip(xs, ys, strict=True)]).mean()

    p, xs, ys = make(device), randn(device, 2, 5, 3), randn(device, 2, 5, 2)
    module = bridge.to_module(p, tasks, copy=True)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        value = module(xs, ys)
        torch.testing.assert_close(value, tasks(p, xs, ys), rtol=0, atol=1e-12)
        value.backward()
        optimizer.step()
        p = pn.tree.map(lambda w, g: w - 0.1 * g, p, pn.grad(tasks)(p, xs, ys))
    assert pn.tree.allclose(bridge.from_module(module), p, rtol=0, atol=1e-12)


def test_trees_with_what_is_given(device: torch.device) -> None:
    """Functions of several trees take the module, or a tree of its parts, with containers of its class."""
    p, x, y = make(device), randn(device, 5, 3), randn(device, 5, 2)

    def together(p: Any, x: Tensor) -> Tensor:
        doubled = pn.tree.map(lambda w: 2 * w, p)
        assert not pn.tree.equal(p, doubled)
        assert pn.tree.equal(pn.tree.map(torch.add, p, p), doubled)
        assert pn.tree.equal({"a": (p.layers[0],)}, {"a": (pn.tree.map(torch.clone, p.layers[0]),)})
        trained, rest = pn.tree.partition(p, paths="**.weight")
        assert pn.tree.equal(
            pn.tree.combine(pn.tree.map(torch.clone, trained), pn.tree.partition(p, paths="**.bias")[0]), p
        )
        assert pn.tree.leaves(rest)
        _, moved = pn.jvp(lambda p: loss(p, x, y), (p,), (doubled,))
        return pn.vmap(lambda p: p(x))(pn.tree.stack([p, doubled])).sum() + moved

    module = bridge.to_module(p, together)
    expected = pn.value_and_grad(together)(p, x)
    found = module(x)
    found.backward()
    torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-12)
    for name, gradient in pn.tree.named_leaves(expected[1]):
        torch.testing.assert_close(module.get_parameter(name).grad, gradient, rtol=0, atol=1e-12)
