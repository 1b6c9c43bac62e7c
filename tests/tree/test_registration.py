"""Containers as nodes of optree's and torch's pytrees, in eager mode and while functions are traced."""

from collections.abc import Callable
from typing import Any

import attrs
import optree
import pytest
import torch
from _models import Affine, Box, Chain, Count, Scale, affine, make_affine, make_chain, make_tied
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as torch_pytree

import purenn as pn
from purenn.tree import HOLE, Alias


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(f, fullgraph=True, backend="eager")


def traced(f: Callable[..., Any]) -> Callable[..., Any]:
    # make_fx takes tensors and returns a graph: the tree is closed over or built inside.
    return lambda *args: make_fx(f)(*args)(*args)


TRACERS = [pytest.param(compiled, id="dynamo"), pytest.param(traced, id="make_fx")]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trees(device: torch.device) -> list[Any]:
    """One tree for every form of registration: two children or not, options or not, absent children, marks."""
    x = torch.arange(3.0, device=device)
    return [
        Affine(x, x + 1),
        Affine(x),
        Scale(x, 2),
        Chain((Affine(x), Scale(x)), "named"),
        Box({"b": x, "a": (x, None)}, Count(x, x), mode=torch.relu),
        Box(),
        pn.tree.freeze(Affine(x, x), "bias"),
        pn.tree.freeze(Chain((x, Affine(x))), "layers.0"),
        make_tied(device=device),
        pn.tree.partition(Count(x, x))[0],
    ]


# ---------------------------------------------------------------------------------------------------- optree


def test_optree_takes_containers_without_a_namespace(device: torch.device) -> None:
    """optree's functions open containers in the global namespace, absent children without leaves."""
    p = make_chain(device=device)
    assert len(optree.tree_leaves(p)) == 3
    assert optree.tree_paths(p) == [("layers", 0, "weight"), ("layers", 0, "bias"), ("layers", 1, "weight")]
    assert [a.codify("p") for a in optree.tree_accessors(Affine(torch.ones(1)))] == ["p.weight"]
    for namespace in ("", "another"):
        q = optree.tree_map(torch.zeros_like, p, namespace=namespace)
        assert type(q) is Chain
        assert not any(leaf.any() for leaf in optree.tree_leaves(q))


def test_the_structure_holds_options_and_marks(device: torch.device) -> None:
    """Two containers have the same structure exactly if classes, options, marks and absent children agree."""
    x = torch.ones(1, device=device)
    spec = optree.tree_structure
    assert spec(Scale(x, 2)) == spec(Scale(x + 1, 2))
    assert spec(Scale(x, 2)) != spec(Scale(x, 3))
    assert spec(Affine(x)) != spec(Affine(x, x))
    assert spec(Affine(x, x)) != spec(pn.tree.freeze(Affine(x, x)))
    assert hash(spec(Scale(x, 2))) == hash(spec(Scale(x, 2)))


def test_rebuilding_takes_placeholders(device: torch.device) -> None:
    """Rebuilding runs no checks, since transformations put their own objects in the place of leaves."""
    for tree in trees(device):
        leaves, spec = optree.tree_flatten(tree)
        for placeholder in (3, "text", object(), torch.relu):
            new = optree.tree_unflatten(spec, [placeholder] * len(leaves))
            assert optree.tree_leaves(new) == [placeholder] * len(leaves)


def test_holes_and_aliases_have_no_leaves() -> None:
    """`HOLE` and aliases are nodes without leaves in all registries."""
    tree = (HOLE, Alias("a"), 1)
    assert optree.tree_leaves(tree) == [1]
    assert torch_pytree.tree_leaves(tree) == [1]
    for tree_map in (optree.tree_map, torch_pytree.tree_map):
        assert tree_map(lambda x: x + 1, tree) == (HOLE, Alias("a"), 2)


# ---------------------------------------------------------------------------------------------------- torch.utils


@pytest.mark.parametrize("name", ["_pytree", "_cxx_pytree"])
def test_torch_pytrees(name: str, device: torch.device) -> None:
    """Both of torch's pytree modules flatten to optree's leaves and rebuild the same tree."""
    import importlib

    module = importlib.import_module(f"torch.utils.{name}")
    for tree in trees(device):
        leaves, spec = module.tree_flatten(tree)
        tensors = [leaf for leaf in leaves if leaf is not None]
        assert {id(t) for t in tensors} == {id(t) for t in optree.tree_leaves(tree)}
        assert pn.tree.equal(module.tree_unflatten(leaves, spec), tree)
        assert module.tree_structure(tree) == spec
        doubled = module.tree_map(lambda x: None if x is None else x * 2, tree)
        assert pn.tree.equal(doubled, pn.tree.map(lambda x: x * 2, tree))


def test_torch_pytree_keys(device: torch.device) -> None:
    """torch's paths of leaves name the fields, and skip absent children."""
    pairs, _ = torch_pytree.tree_flatten_with_path(make_chain(device=device))
    assert [torch_pytree.keystr(path) for path, _ in pairs] == [
        ".layers[0].weight",
        ".layers[0].bias",
        ".layers[1].weight",
    ]
    assert torch_pytree.tree_flatten_with_path((HOLE, Alias("a")))[0] == []


def test_torch_pytree_can_make_leaves_absent(device: torch.device) -> None:
    """A map that returns None in torch's pytree keeps the place of the leaf."""
    p = torch_pytree.tree_map(lambda _: None, Affine(torch.ones(1, device=device)))
    assert (p.weight, p.bias) == (None, None)


# ---------------------------------------------------------------------------------------------------- torch.func


@pytest.mark.parametrize("bias", [True, False])
def test_raw_torch_func(bias: bool, device: torch.device) -> None:
    """torch.func's grad, vmap, jacrev, jvp and vjp take and return containers, absent children or not."""
    p = make_affine(bias=bias, dtype=torch.float64, device=device)
    x = torch.linspace(0, 1, 3, dtype=torch.float64, device=device)

    def f(p: Affine, x: Tensor) -> Tensor:
        return affine(p, x).square().sum()

    g = torch.func.grad(f)(p, x)
    assert type(g) is Affine
    assert torch.allclose(g.weight, 2 * torch.outer(affine(p, x), x), rtol=0, atol=1e-12)
    assert (g.bias is None) == (not bias)
    batch = torch.stack([x, 2 * x])
    rows = torch.func.vmap(torch.func.grad(f), (None, 0))(p, batch)
    assert torch.allclose(rows.weight[1], torch.func.grad(f)(p, 2 * x).weight, rtol=0, atol=1e-12)
    models = pn.tree.stack([p, pn.tree.map(lambda w: 2 * w, p)])
    assert torch.allclose(torch.func.vmap(affine, (0, None))(models, x)[1], 2 * affine(p, x), rtol=0, atol=1e-12)
    jacobian = torch.func.jacrev(affine)(p, x)
    assert jacobian.weight.shape == (2, 2, 3)
    _, tangent = torch.func.jvp(lambda p: affine(p, x), (p,), (p,))
    assert torch.allclose(tangent, affine(p, x), rtol=0, atol=1e-12)
    _, pull = torch.func.vjp(lambda p: affine(p, x), p)
    assert type(pull(torch.ones_like(tangent))[0]) is Affine


# ---------------------------------------------------------------------------------------------------- tracing


def tree_ops(device: torch.device) -> list[Any]:
    """Functions of a tensor that make, change and map containers, each returning tensors."""

    def construct(x: Tensor) -> Any:
        p = Chain([Affine(x, bias=x + 1), Scale(x * 2, power=2)])
        return p.layers[0].bias, p.layers[1].factor ** p.layers[1].power

    def defaults(x: Tensor) -> Any:
        p = Box({"a": x, "b": [x + 1]}, mode=torch.relu)
        return p.mode(p.content["b"][0]) + p.size

    def replaced(x: Tensor) -> Any:
        p = pn.replace(Scale(x, 3), factor=x + 2)
        return p.factor * p.power

    def evolved(x: Tensor) -> Any:
        p = attrs.evolve(Scale(x, 3), factor=x + 2, power=5)
        return p.factor * p.power

    def with_optree(x: Tensor) -> Any:
        p = optree.tree_map(lambda t: t + 1, Chain((Affine(x, x), Affine(x), Scale(x))))
        return [t * 2 for t in optree.tree_leaves(p)]

    def with_torch_pytree(x: Tensor) -> Any:
        p = torch_pytree.tree_map(lambda t: t + 1, Chain((Affine(x, x), Affine(x), Scale(x))))
        return p.layers[0].bias, p.layers[1].weight, p.layers[2].factor

    def applied(x: Tensor) -> Any:
        return Chain((Affine(x[:, None] * x), Scale(x)))(x)

    def stateful(x: Tensor) -> Any:
        y, new = Chain((Count(x, x * 0), Scale(x)))(x, train=True)
        return y, new.layers[0].calls

    def inherited(x: Tensor) -> Any:
        return affine(_Sub(x[:, None] * x, None, x), x)

    return [construct, defaults, replaced, evolved, with_optree, with_torch_pytree, applied, stateful, inherited]


@pn.container
class _Sub(Affine):
    extra: Tensor | None = None


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("number", range(9))
def test_tracing_operations_on_trees(tracer: Any, number: int, device: torch.device) -> None:
    """Containers are built, replaced, evolved, mapped and applied inside traced functions, without a graph break."""
    f = tree_ops(device)[number]
    x = torch.linspace(1, 2, 3, dtype=torch.float64, device=device)
    got, expected = tracer(f)(x), f(x)
    for a, b in zip(optree.tree_leaves(got), optree.tree_leaves(expected), strict=True):
        assert torch.equal(a, b)


def test_dynamo_takes_and_returns_containers(device: torch.device) -> None:
    """A compiled function takes containers of every form and returns new ones with their options and marks."""
    for tree in trees(device):
        torch._dynamo.reset()
        new = compiled(lambda p: optree.tree_map(lambda t: t * 2, p))(tree)
        assert pn.tree.equal(new, pn.tree.map(lambda t: t * 2, tree)), repr(tree)


def tree_functions() -> list[Any]:
    """Functions of purenn.tree whose results are trees, numbers or devices."""
    tree = pn.tree
    return [
        lambda p: tree.map(lambda a: a * 2, p),
        lambda p: tree.map(lambda a, b: a - b, p, tree.partition(p)[0]),
        lambda p: tree.map(lambda a, b: a + b, {"p": p, "none": None}, {"p": p, "none": None}),
        lambda p: tree.combine(*tree.partition(p)),
        lambda p: tree.partition(p, kind="buffer"),
        lambda p: tree.partition(p, paths="**.weight"),
        lambda p: tree.partition(p, instances=Affine),
        lambda p: tree.partition(p, where=lambda leaf: leaf.dim() == 1),
        lambda p: tree.unstack(tree.stack([{"p": p}, {"p": p}])),
        lambda p: tree.to(p, torch.float64),
        lambda p: tree.freeze(tree.unfreeze(p), "layers.0"),
        lambda p: tree.select(p).instances(Affine).paths("weight").apply(torch.zeros_like),
        lambda p: tree.leaves(p),
        lambda p: [leaf for _, leaf in tree.named_leaves(p)],
        lambda p: (tree.count(p), tree.count(p, trainable=True)),
        lambda p: tree.untie(tree.tie(p)),
    ]


@pytest.mark.parametrize("number", range(16))
def test_dynamo_traces_the_functions_on_trees(number: int, device: torch.device) -> None:
    """What is done to trees can be done in a compiled function, too."""
    f = tree_functions()[number]
    p = pn.tree.freeze(Chain((make_affine(device=device), Count(*make_affine(device=device).weight))), "layers.0.bias")
    assert pn.tree.equal(compiled(f)(p), f(p))


def test_dynamo_recompiles_for_options(device: torch.device) -> None:
    """An option is a constant of the compiled code: another value means another compilation, not a stale result."""
    f = compiled(lambda p, x: p(x))
    x = torch.full((2,), 3.0, device=device)
    for power in (1, 2, 3):
        assert torch.equal(f(Scale(x, power), x), x ** (power + 1))


def test_dynamo_gradients_of_containers(device: torch.device) -> None:
    """torch.func.grad of a model is compiled as a whole."""
    p = make_chain(dtype=torch.float64, device=device)
    x = torch.ones(3, dtype=torch.float64, device=device)
    g = torch.func.grad(lambda p, x: p(x).square().sum())
    got, expected = compiled(g)(p, x), g(p, x)
    assert pn.tree.allclose(got, expected, rtol=0, atol=1e-12)


def test_make_fx_takes_containers(device: torch.device) -> None:
    """make_fx itself takes a container as an argument."""
    p, x = make_chain(device=device), torch.ones(3, device=device)
    graph = make_fx(lambda p, x: p(x))(p, x)
    assert torch.equal(graph(p, x), p(x))


@pytest.mark.parametrize("bias", [True, False])
def test_export_takes_containers(bias: bool, device: torch.device) -> None:
    """torch.export accepts a container as an input and gives the program the same calling convention."""

    class Program(torch.nn.Module):
        def forward(self, p: Any, x: Tensor) -> Tensor:
            return p(x)

    for p in (make_affine(bias=bias, device=device), Chain((make_affine(3, 3, bias=bias, device=device),))):
        x = torch.ones(4, 3, device=device)
        program = torch.export.export(Program(), (p, x)).module()
        other = pn.tree.map(lambda t: t + 1, p)
        assert torch.allclose(program(other, x), other(x), rtol=0, atol=1e-5)
