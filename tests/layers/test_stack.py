"""A stack of equal layers: the loop over them, in every carrier."""

import pytest
import torch
from torch import Tensor

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ContainerError, StructureError
from purenn.layers import BatchNorm1d, Dropout, Linear, ReLU, Sequential, Stack, Tanh

DOUBLE = torch.float64


def _block(key: Tensor) -> Sequential:
    return Sequential.of(Linear.init(key, 4, 4, dtype=DOUBLE), Dropout(0.25), Tanh())


def _stateful(key: Tensor) -> Sequential:
    return Sequential.of(Linear.init(key, 4, 4, dtype=DOUBLE), BatchNorm1d.init(4, dtype=DOUBLE))


def _x(device: torch.device) -> Tensor:
    return pn.random.normal(pn.random.key(1, device), (8, 4), dtype=DOUBLE)


def _made(device: torch.device, init=_block, **options: bool) -> Stack:
    return pn.tree.to(Stack.init(pn.random.key(0), 5, init, **options), device=device)


@pytest.mark.parametrize("remat", [False, True])
def test_is_the_loop(device: torch.device, remat: bool) -> None:
    """Values, draws and gradients are those of applying the layers one by one."""
    p, x, key = _made(device, remat=remat), _x(device), pn.random.key(2, device)

    def by_hand(p: Stack, x: Tensor, key: Tensor) -> Tensor:
        for layer, own in zip(p.unstacked(), pn.random.split(key, 5), strict=True):
            x = layer(x, key=own)
        return x

    assert len(p) == p.number == 5
    for run in (Stack.__call__, pn.jit(Stack.__call__, backend="eager")):
        torch.testing.assert_close(run(p, x, key=key), by_hand(p, x, key), rtol=0, atol=1e-14)
    expected = pn.grad(lambda p: by_hand(p, x, key).square().sum())(p)
    gradient = pn.grad(lambda p: p(x, key=key).square().sum())
    assert pn.tree.allclose(gradient(p), expected, atol=1e-12)
    assert pn.tree.allclose(pn.jit(gradient, backend="eager")(p), expected, atol=1e-12)


def test_stateful_layers(device: torch.device) -> None:
    """The new container has the new buffers of all layers, and the same parameters."""
    p, x = _made(device, _stateful), _x(device)
    y, new = p(x, train=True)
    expected, layers = x, []
    for layer in p.unstacked():
        expected, after = layer(expected, train=True)
        layers.append(after)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    assert pn.tree.allclose(new, Stack.of(*layers), atol=1e-14)
    assert new.layers[0].weight is p.layers[0].weight
    y2, new2 = pn.jit(lambda p, x: p(x, train=True), backend="eager")(p, x)
    assert pn.tree.allclose((y2, new2), (y, new), atol=1e-14)


def test_shared_inputs(device: torch.device) -> None:
    """Further inputs go to every layer."""

    @pn.container
    class Gated(pn.Layer):
        weight: Tensor

    @pn.applies(Gated)
    def gated(p: Gated, x: Tensor, gate: Tensor) -> Tensor:
        return x + gate * (p.weight * x).sin()

    p, x = Stack.of(*(Gated(torch.tensor(float(n), device=device)) for n in range(3))), torch.ones(2, device=device)
    gate = torch.tensor([0.0, 1.0], device=device)
    y = p(x, gate)
    assert y[0] == 1
    torch.testing.assert_close(pn.jit(Stack.__call__, backend="eager")(p, x, gate), y)


def test_as_a_module(device: torch.device) -> None:
    """Carried by a module it gives the same, trains, keeps its buffers, and comes back."""
    p, x = _made(device, _stateful), _x(device)
    m = bridge.to_module(p, copy=True)
    assert list(m.state_dict())[:2] == ["layers.layers.0.weight", "layers.layers.0.bias"]
    assert pn.tree.equal(bridge.from_module(m), p)
    expected, new = p(x, train=True)
    out = m(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    assert pn.tree.equal(bridge.from_module(m), new)
    out.square().sum().backward()
    gradient = pn.grad(lambda p: p(x, train=True)[0].square().sum())(p)
    torch.testing.assert_close(m.layers.layers[0].weight.grad, gradient.layers[0].weight, rtol=0, atol=1e-12)
    m.eval()
    torch.testing.assert_close(m(x), new(x)[0], rtol=0, atol=1e-14)
    assert "number=5" in repr(m)


def test_ensembles_of_stacks(device: torch.device) -> None:
    """vmap over models that contain stacks is the loop over the models."""
    keys, x = pn.random.split(pn.random.key(3), 3), _x(device)
    models = pn.tree.to(pn.ensemble(lambda key: Stack.init(key, 4, _block))(keys), device=device)
    many = pn.vmap(Stack.__call__, in_dims=(0, None))
    expected = torch.stack([p(x) for p in pn.tree.unstack(models)])
    torch.testing.assert_close(many(models, x), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(pn.jit(many, backend="eager")(models, x), expected, rtol=0, atol=1e-14)


def test_torch_compile(device: torch.device) -> None:
    """torch.compile writes the layers out without a graph break."""
    p, x = _made(device), _x(device)
    compiled = torch.compile(lambda p, x: p(x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(p, x), p(x), rtol=0, atol=1e-14)


def test_errors(device: torch.device) -> None:
    """Wrong use says what was wrong and what to do."""
    with pytest.raises(ArgumentError) as error:
        Stack.init(pn.random.key(0), 0, _block)
    assert str(error.value) == "Stack.init: number must be at least 1, got 0."
    with pytest.raises(ContainerError) as error:
        Stack.init(pn.random.key(0), 2, lambda key: {"w": pn.random.normal(key, (2,))})
    assert str(error.value) == (
        "Stack: its members are of type dict, which has no function to apply: bind one with @pn.applies."
    )
    with pytest.raises(ContainerError) as error:
        Stack.of(ReLU(), ReLU())
    assert str(error.value) == (
        "Stack: its members are of type ReLU and have no tensors, so nothing says how many there are: use Sequential."
    )
    with pytest.raises(StructureError) as error:
        Stack.init(pn.random.key(0), 2, lambda key: Linear.init(key, 4, 3))(torch.ones(2, 4))
    assert str(error.value) == (
        "scan: the carry that the body returns must look like the one that it gets, but the tree itself is f32[2,4] "
        "there and f32[2,3] here."
    )
