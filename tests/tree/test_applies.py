"""Binding functions to containers, and telling which containers have state."""

import inspect
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, Count, Scale, affine, chain, make_affine, make_chain, scale
from torch import Tensor, nn

import purenn as pn
from purenn.errors import ContainerError

Pair = namedtuple("Pair", "left right")


def make_count(device: torch.device) -> Count:
    return Count(torch.ones(1, device=device), torch.zeros(1, device=device))


def test_a_container_is_its_function(device: torch.device) -> None:
    """`p(x)` is `f(p, x)`, options included."""
    p, x = make_chain(device=device), torch.ones(5, 3, device=device)
    assert torch.equal(p(x), chain(p, x))
    assert torch.equal(p(x, train=True), chain(p, x))
    assert chain(p, x).shape == (5, 2)


def test_the_function_keeps_its_identity() -> None:
    """The bound function has the name, documentation and signature that were written."""
    assert affine.__name__ == "affine"
    assert affine.__doc__ == "The product with the weight, plus the bias."
    assert list(inspect.signature(affine).parameters) == ["p", "x"]
    assert Affine.__call__ is affine


def test_a_function_may_be_bound_without_the_base_class(device: torch.device) -> None:
    """`Layer` is optional: any container may be bound."""

    @pn.container
    class Bare:
        weight: Tensor

    @pn.applies(Bare)
    def bare(p: Bare, x: Tensor) -> Tensor:
        return p.weight * x

    assert Bare(torch.full((1,), 3.0, device=device))(2).item() == 6.0  # pyright: ignore[reportCallIssue]


def test_a_subclass_may_have_its_own_function(device: torch.device) -> None:
    """A function bound to a subclass does not change its parent's."""

    @pn.container
    class Negative(Affine):
        pass

    @pn.applies(Negative)
    def negative(p: Negative, x: Tensor) -> Tensor:
        return -affine(p, x)

    p, q = make_affine(device=device), Negative(*pn.tree.leaves(make_affine(device=device)))
    x = torch.ones(3, device=device)
    assert torch.equal(q(x), -p(x))
    assert torch.equal(affine(q, x), p(x))


def test_binding_to_what_is_no_container() -> None:
    """Only containers can be bound, not their undecorated subclasses either."""

    class Plain(Affine):
        pass

    for value, name in ((nn.Linear, "Linear"), (Plain, "Plain"), (3, "3")):
        with pytest.raises(ContainerError) as error:
            pn.applies(value)  # pyright: ignore[reportArgumentType]
        assert str(error.value) == (f"@pn.applies({name}): {name} is no container; put @pn.container above the class.")


def test_a_layer_without_function() -> None:
    """Calling a layer to which no function is bound says how to bind one."""

    @pn.container
    class Silent(pn.Layer):
        weight: Tensor

    with pytest.raises(ContainerError) as error:
        Silent(torch.ones(1))(3)
    assert str(error.value) == (
        "Silent has no function: write one as `def f(p, x)` and bind it with `@pn.applies(Silent)`."
    )


def test_a_module_may_take_the_place_of_the_container(device: torch.device) -> None:
    """A layer function reads the attributes of any module that has the right ones."""
    module = nn.Linear(3, 2, device=device, dtype=torch.float64)
    x = torch.linspace(-1, 1, 3, dtype=torch.float64, device=device)
    assert torch.allclose(affine(module, x), module(x), rtol=0, atol=1e-12)  # pyright: ignore[reportArgumentType]
    without = nn.Linear(3, 2, bias=False, device=device, dtype=torch.float64)
    assert torch.allclose(affine(without, x), without(x), rtol=0, atol=1e-12)  # pyright: ignore[reportArgumentType]


def test_modules_inside_of_a_function_are_called_or_read(device: torch.device) -> None:
    """Whatever has the right attributes may carry the parameters, as a chain of modules does."""
    module = nn.Module()
    module.layers = nn.ModuleList([nn.Linear(3, 4, device=device), nn.Linear(4, 2, device=device)])
    x = torch.ones(3, device=device)

    class Read(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for layer in module.layers:  # pyright: ignore[reportGeneralTypeIssues]
                x = affine(layer, x)
            return x

    assert torch.allclose(Read()(x), chain(module, x), rtol=0, atol=1e-6)  # pyright: ignore[reportArgumentType]


def test_stateful_layers(device: torch.device) -> None:
    """A stateful layer always returns its new container, which is the old one unless it trains."""
    p, x = make_count(device), torch.ones(1, device=device)
    y, same = p(x)
    assert same is p
    y, new = p(x, train=True)
    assert torch.equal(y, x)
    assert (p.calls.item(), new.calls.item()) == (0.0, 1.0)


def test_is_stateful(device: torch.device) -> None:
    """A tree is stateful if a layer in it is, in fields, tuples and dicts of any kind; leaves never are."""
    still, counting = make_affine(device=device), make_count(device)
    collections: list[Any] = [
        lambda p: p,
        lambda p: (still, p),
        lambda p: [p],
        lambda p: {"a": still, "b": (p,)},
        lambda p: OrderedDict(a=p),
        lambda p: Pair(None, p),
        lambda p: Chain((still, p)),
        lambda p: Box({"a": [Chain((p,))]}),
        lambda p: Box(state=p),
    ]
    for collect in collections:
        assert pn.is_stateful(collect(counting)), collect(counting)
        assert not pn.is_stateful(collect(still)), collect(still)
    for value in (None, 3, torch.ones(1), pn.tree.HOLE, pn.tree.Alias("a"), Affine, Count, nn.Linear(1, 1)):
        assert not pn.is_stateful(value)


def test_is_stateful_depends_on_the_structure_alone(device: torch.device) -> None:
    """Marks, holes and stacking do not change whether a tree is stateful."""
    p = Chain((make_affine(device=device), make_count(device)))
    for tree in (pn.tree.freeze(p), pn.tree.partition(p)[0], pn.tree.stack([p, p])):
        assert pn.is_stateful(tree)


def test_stateful_can_be_denied(device: torch.device) -> None:
    """A function bound with stateful=False returns its output alone, whatever its members are."""

    @pn.container
    class Frozen(pn.Layer):
        inner: Any

    @pn.applies(Frozen, stateful=False)
    def frozen(p: Frozen, x: Tensor) -> Tensor:
        return p.inner(x)[0]

    p = Frozen(make_count(device))
    assert not pn.is_stateful(p)
    assert not pn.is_stateful(Chain((p,)))
    assert torch.equal(Chain((p,))(torch.ones(1, device=device)), torch.ones(1, device=device))


def test_options_belong_to_the_structure(device: torch.device) -> None:
    """Under vmap and grad a function sees its options as plain Python values."""
    p = Scale(torch.arange(1.0, 4.0, device=device), 2)
    x = torch.ones((), device=device)
    assert torch.func.vmap(scale, (0, None))(p, x).tolist() == [1.0, 4.0, 9.0]
    gradient = torch.func.grad(lambda p: scale(p, x).sum())(p)
    assert (gradient.factor.tolist(), gradient.power) == ([2.0, 4.0, 6.0], 2)
