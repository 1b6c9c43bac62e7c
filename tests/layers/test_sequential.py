"""Sequential: members in order, by position or by name, with keys and state handed through, as container and module."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import same
from _transformations import check_purity, check_transformations
from torch import Tensor, nn
from torch.func import grad, vmap

import bridge
import purenn as pn
from purenn import layers
from purenn.layers import BatchNorm1d, Dropout, Lambda, Linear, ReLU, Sequential, sequential


def dense(in_features: int, out_features: int, seed: int = 0, device: torch.device | None = None) -> Linear:
    """A linear layer in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    return Linear(weight.to(device), torch.randn(out_features, generator=generator, dtype=torch.float64).to(device))


def numbers(*shape: int, device: torch.device | None = None) -> Tensor:
    """Numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(device)


def network(device: torch.device, seed: int = 0) -> Sequential:
    """Linear, norm, dropout, linear: a stateful member, one that draws, and two that do neither."""
    return Sequential.of(
        dense(3, 4, seed, device),
        BatchNorm1d.init(4, dtype=torch.float64, device=device),
        torch.tanh,
        Dropout(0.5),
        dense(4, 2, seed + 1, device),
    )


def test_applies_members_in_order(device: torch.device) -> None:
    """The output is that of torch's Sequential with the same layers; without members it is the input."""
    first, second = dense(3, 4, 0, device), dense(4, 2, 1, device)
    p, x = Sequential.of(first, ReLU(), second), numbers(5, 3, device=device)
    same(sequential(p, x), layers.linear(second, torch.relu(layers.linear(first, x))))
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().to(device)
    module.load_state_dict({path.removeprefix("layers."): leaf for path, leaf in pn.tree.named_leaves(p)})
    same(p(x), module(x))
    assert sequential(Sequential.of(), x) is x


def test_order_of_names_is_kept(device: torch.device) -> None:
    """Named members run in the order in which they were given, after every rebuilding, and the order is structure."""
    z, a = Lambda(torch.sin), Lambda(torch.exp)
    p, other = Sequential.named(z=z, a=a), Sequential.named(a=a, z=z)
    x = numbers(3, device=device)
    for model, expected in ((p, x.sin().exp()), (other, x.exp().sin())):
        same(model(x), expected)
        same(pn.tree.map(lambda leaf: leaf, model)(x), expected)
        same(pn.tree.combine(*pn.tree.partition(model))(x), expected)
        same(vmap(model)(x), expected)
    assert not pn.tree.equal(p, other)


def test_paths_are_names_or_positions(device: torch.device) -> None:
    """Leaves are named by position or by name, below ``layers``."""
    assert [path for path, _ in pn.tree.named_leaves(Sequential.of(ReLU(), dense(2, 2, device=device)))] == [
        "layers.1.weight",
        "layers.1.bias",
    ]
    assert [path for path, _ in pn.tree.named_leaves(Sequential.named(hidden=dense(2, 2, device=device)))] == [
        "layers.hidden.weight",
        "layers.hidden.bias",
    ]


def test_is_a_sequence_of_its_members() -> None:
    """Length, iteration, indices of both signs, slices and names work as on torch's Sequential."""
    relu, tanh, sigmoid = layers.ReLU(), layers.Tanh(), layers.Sigmoid()
    p = Sequential.of(relu, tanh, sigmoid)
    assert len(p) == 3
    assert len(Sequential.of()) == 0
    assert Sequential.of()
    assert list(p) == [relu, tanh, sigmoid]
    assert p[0] is relu
    assert p[-1] is sigmoid
    assert list(p[1:]) == [tanh, sigmoid]
    assert isinstance(p[1:], Sequential)
    q = Sequential.named(c=relu, b=tanh, a=sigmoid)
    assert len(q) == 3
    assert list(q) == [relu, tanh, sigmoid]
    assert q["b"] is tanh
    assert q[2] is sigmoid
    assert q[::2].names == ("c", "a")
    assert list(q[::2]) == [relu, sigmoid]
    with pytest.raises(IndexError):
        p[3]


def test_plain_functions_become_layers(device: torch.device) -> None:
    """A function given as a member is wrapped as Lambda."""
    p = Sequential.of(torch.sin, torch.exp)
    assert [type(member) for member in p] == [Lambda, Lambda]
    x = numbers(3, device=device)
    same(p(x), x.sin().exp())


def test_keys_are_split_among_those_that_take_one(device: torch.device) -> None:
    """Every drawing member gets a key of its own, also inside a nested Sequential; no key means deterministic."""
    inner = Sequential.of(Dropout(0.5), torch.neg)
    p = Sequential.of(Dropout(0.5), torch.abs, inner)
    x, key = torch.ones(100, dtype=torch.float64, device=device), pn.random.key(3, device=device)
    first, second = pn.random.split(key, 2)
    expected = layers.dropout(p[0], x, key=first)
    same(p(x, key=key), -layers.dropout(inner[0], expected.abs(), key=pn.random.split(second, 1)[0]))
    same(p(x), -x)


def test_state_is_collected(device: torch.device) -> None:
    """Exactly with a stateful member the new container comes back too; the old one is untouched."""
    p, x = network(device), numbers(6, 3, device=device)
    assert pn.is_stateful(p)
    check_purity(lambda p, x: p(x, train=True), p, x)
    y, new = p(x, train=True)
    hidden, norm = layers.batch_norm(p[1], layers.linear(p[0], x), train=True)
    same(y, layers.linear(p[4], torch.tanh(hidden)))
    assert pn.tree.equal(new[1], norm)
    assert new[0] is p[0]
    assert new[1].num_batches_tracked == 1
    y, after = new(x)
    same(y, layers.linear(p[4], torch.tanh(layers.batch_norm(norm, layers.linear(p[0], x))[0])))
    assert pn.tree.equal(after, new)
    assert not pn.is_stateful(p[2:])
    assert isinstance(p[2:](hidden), Tensor)


def test_state_of_named_and_nested_members(device: torch.device) -> None:
    """The new container keeps names, order and nesting."""
    p = Sequential.named(z=dense(3, 4, 0, device), a=Sequential.named(n=network(device)[1], d=Dropout(0.5)))
    _, new = p(numbers(6, 3, device=device), train=True, key=pn.random.key(0, device=device))
    assert new.names == ("z", "a")
    assert new["a"]["n"].num_batches_tracked == 1
    assert p["a"]["n"].num_batches_tracked == 0
    assert pn.tree.named_leaves(new)[0][0] == pn.tree.named_leaves(p)[0][0]


def test_transformations(device: torch.device) -> None:
    """It is right under vmap, vmap(grad), grad(vmap(grad)), jvp, tracing and compilation, state included."""

    def apply(p: Sequential, x: Tensor) -> Tensor:
        y, new = p(x, train=True)
        return torch.cat([y.flatten(), new[1].running_mean])

    check_transformations(lambda seed: network(device, seed), apply, numbers(3, 5, 3, device=device))
    check_transformations(
        lambda seed: Sequential.named(z=dense(3, 4, seed, device), a=Lambda(torch.tanh)),
        sequential,
        numbers(3, 5, 3, device=device),
    )


def test_compiles_with_key_and_state(device: torch.device) -> None:
    """A training pass of the whole is one graph."""
    p, x, key = network(device), numbers(6, 3, device=device), pn.random.key(1, device=device)

    def call(p: Sequential, x: Tensor, key: Tensor) -> tuple[Tensor, Sequential]:
        return sequential(p, x, key=key, train=True)

    torch.compiler.reset()
    y, new = torch.compile(call, fullgraph=True, backend="aot_eager")(p, x, key)
    expected, expected_new = call(p, x, key)
    same(y, expected)
    assert pn.tree.allclose(new, expected_new)


def test_gradient_compiles(device: torch.device) -> None:
    """The gradient of a model that is called as a function is one graph, too."""
    p, x, key = network(device), numbers(6, 3, device=device), pn.random.key(1, device=device)

    def loss(p: Sequential, x: Tensor, key: Tensor) -> tuple[Tensor, Sequential]:
        y, new = p(x, key=key, train=True)
        return y.square().sum(), new

    torch.compiler.reset()
    step = pn.value_and_grad(loss, has_aux=True)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(p, x, key)
    assert pn.tree.allclose(got, step(p, x, key))


def test_an_ensemble(device: torch.device) -> None:
    """vmap over stacked models and keys gives each model its own statistics and its own zeros."""
    models = [network(device, seed) for seed in (0, 5)]
    x, keys = numbers(6, 3, device=device), pn.random.split(pn.random.key(0, device=device), 2)
    y, new = vmap(lambda p, key: p(x, key=key, train=True), (0, 0))(pn.tree.stack(models), keys)
    for i, p in enumerate(models):
        expected, one = p(x, key=keys[i], train=True)
        same(y[i], expected)
        same(new[1].running_var[i], one[1].running_var)


def test_tied_members(device: torch.device) -> None:
    """A tied leaf is one leaf: its gradient is the sum of both places, by position and by name."""
    one = dense(3, 3, 0, device)
    x = numbers(4, 3, device=device)
    expected = grad(
        lambda w: layers.linear(
            pn.replace(one, weight=w), torch.tanh(layers.linear(pn.replace(one, weight=w), x))
        ).sum()
    )(one.weight)
    by_position = pn.tree.tie(Sequential.of(one, torch.tanh, one))
    by_name = pn.tree.tie(Sequential.named(a=one, f=torch.tanh, b=one))
    for p in (by_position, by_name):
        assert len(pn.tree.leaves(p)) == 2
        same(pn.tree.leaves(pn.grad(lambda p: p(x).sum())(p))[0], expected)


@pytest.mark.parametrize("named", [False, True])
def test_as_a_module(named: bool, device: torch.device) -> None:
    """The module has torch's kind of keys, fires hooks of every member, and computes and updates the same."""
    p = network(device)
    if named:
        p = Sequential.named(**dict(zip("vwxyz", p, strict=True)))
    x = numbers(6, 3, device=device)
    module = bridge.to_module(p, copy=True)
    prefixes = "vwxyz" if named else "01234"
    assert list(module.state_dict())[:3] == [
        f"layers.{prefixes[0]}.weight",
        f"layers.{prefixes[0]}.bias",
        f"layers.{prefixes[1]}.weight",
    ]
    seen: list[str] = []
    for name, child in module.named_modules():
        child.register_forward_hook(lambda *_, name=name: seen.append(name))
    same(module.eval()(x), p(x)[0])
    assert seen == [*(f"layers.{prefix}" for prefix in prefixes), ""]
    torch.manual_seed(0)
    y = module.train()(x)
    _, new = p(x, train=True)
    assert y.shape == (6, 2)
    for name, value in pn.tree.named_leaves(new):
        same(module.state_dict()[name], value)
    torch.manual_seed(0)
    same(module(x), y)


def test_containers_around_it_find_it_stateful_or_not(device: torch.device) -> None:
    """A container of one's own calls it with its field, and gives its new state back by replace."""

    @pn.container
    class Model(pn.Layer):
        body: Sequential
        head: Linear

    @pn.applies(Model)
    def model(p: Model, x: Tensor, *, train: bool = False) -> tuple[Tensor, Model]:
        y, body = sequential(p.body, x, train=train)
        return layers.linear(p.head, y), pn.replace(p, body=body)

    p, x = Model(network(device), dense(2, 1, 3, device)), numbers(6, 3, device=device)
    _, new = p(x, train=True)
    assert new.body[1].num_batches_tracked == 1
    module = bridge.to_module(p, copy=True)
    module(x)
    assert module.body.layers[1].num_batches_tracked == 1
    same(module.body.layers[1].running_mean, new.body[1].running_mean)


@pn.container
class Speechless(pn.Layer):
    """A container without a function."""

    weight: Tensor


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: Sequential.of(ReLU(), ReLU),
        "Sequential: the member '1' is the class ReLU; expected a container with a function (make one with its "
        "constructor or init, turn a module into one with bridge.from_module) or a plain function.",
    ),
    (
        lambda: Sequential.of(nn.ReLU()),
        "Sequential: the member '0' is a ReLU; expected a container with a function (make one with its constructor or "
        "init, turn a module into one with bridge.from_module) or a plain function.",
    ),
    (
        lambda: Sequential.named(weight=torch.zeros(2)),
        "Sequential: the member 'weight' is a Tensor; expected a container with a function (make one with its "
        "constructor or init, turn a module into one with bridge.from_module) or a plain function.",
    ),
    (
        lambda: Sequential.of(Speechless(torch.zeros(2))),
        "Sequential: the member '0' is a Speechless; expected a container with a function (make one with its "
        "constructor or init, turn a module into one with bridge.from_module) or a plain function.",
    ),
    (
        lambda: sequential(Sequential((ReLU(), Speechless(torch.zeros(2)))), torch.zeros(2)),
        "sequential: the member '1' is a Speechless, which has no function to apply: bind one with @pn.applies, or "
        "turn a module into a container with bridge.from_module.",
    ),
    (
        lambda: Sequential({"a": ReLU()}),
        "Sequential: the names must be the keys of the dict of layers. Use Sequential.named(first=..., second=...), or "
        "Sequential.of(...) for layers without names.",
    ),
    (
        lambda: Sequential.named(a=ReLU(), b=ReLU())["c"],
        "Sequential has no member 'c'; it has 'a', 'b'.",
    ),
    (
        lambda: Sequential.of(ReLU())["c"],
        "Sequential has no member 'c'; it has no names, only positions.",
    ),
]


@pytest.mark.parametrize(("wrong", "text"), ERRORS)
def test_errors(wrong: Callable[[], Any], text: str) -> None:
    """What cannot be a member is refused with its position, what was expected, and what to do."""
    with pytest.raises(pn.errors.ContainerError) as caught:
        wrong()
    assert str(caught.value) == text
