"""Selecting nodes of a tree, and surgery on them."""

from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, Count, Scale, make_affine, make_chain, make_tied
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, ContainerError, SelectionError
from purenn.tree import select


def make_tree(device: torch.device) -> Chain:
    """A chain with a chain in it, a dict and a buffer."""
    x = torch.ones(1, device=device)
    return Chain(
        (Affine(x, x), Chain((Affine(x), Scale(x)), "inner"), Box({"weight": x, "encoder": Affine(x)}), Count(x, x))
    )


PATTERNS: list[Any] = [
    ("layers", ("layers",)),
    ("layers.0.weight", ("layers.0.weight",)),
    ("*", ("layers",)),
    ("layers.*", ("layers.0", "layers.1", "layers.2", "layers.3")),
    ("layers.*.weight", ("layers.0.weight",)),
    ("layers.*.w*", ("layers.0.weight",)),
    ("layers.*.*l*", ("layers.1.layers", "layers.3.calls")),
    ("*.0", ("layers.0",)),
    (
        "**.weight",
        ("layers.0.weight", "layers.1.layers.0.weight", "layers.2.content.encoder.weight", "layers.2.content.weight"),
    ),
    (
        "layers.**.weight",
        ("layers.0.weight", "layers.1.layers.0.weight", "layers.2.content.encoder.weight", "layers.2.content.weight"),
    ),
    ("layers.1.**.weight", ("layers.1.layers.0.weight",)),
    ("layers.0.**.weight", ("layers.0.weight",)),
    ("**.layers.*", ("layers.0", "layers.1", "layers.1.layers.0", "layers.1.layers.1", "layers.2", "layers.3")),
    ("layers.0.**", ("layers.0.weight", "layers.0.bias")),
    ("layers.1.**", ("layers.1.layers.0.weight", "layers.1.layers.1.factor")),
    ("**.encoder.**", ("layers.2.content.encoder.weight",)),
    (["**.bias", "layers.3.gain"], ("layers.0.bias", "layers.3.gain")),
    (("layers.0",), ("layers.0",)),
]


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
def test_patterns(pattern: Any, expected: tuple[str, ...], device: torch.device) -> None:
    """``*`` is any text in one part, ``**`` any number of parts, and at the end all leaves below."""
    assert select(make_tree(device)).paths(pattern).names == expected


def test_all_leaves(device: torch.device) -> None:
    """A lone ``**`` is all leaves, of a bare leaf the leaf itself."""
    p = make_tree(device)
    assert select(p).paths("**").names == tuple(path for path, _ in pn.tree.named_leaves(p))
    assert select(p.layers[0].weight).paths("**").get() == (p.layers[0].weight,)
    assert select(p.layers[0].weight).paths("*").names == ()


@pytest.mark.parametrize("key", ["a+b", "[x]", "^", "a b", "a\nb", "$", "\\d"])
def test_keys_are_not_regular_expressions(key: str) -> None:
    """Special characters in a path stand for themselves."""
    tree = {key: 1, "other": 2}
    assert select(tree).paths(key).names == (key,)
    assert select(tree).paths("*").names == tuple(sorted([key, "other"]))
    assert select(tree).paths("**").names == tuple(sorted([key, "other"]))


def test_instances(device: torch.device) -> None:
    """Nodes are found by class, from the whole tree down, in the order of the tree."""
    p = make_tree(device)
    assert select(p).instances(Chain).names == ("", "layers.1")
    assert select(p).instances((Scale, Count)).names == ("layers.1.layers.1", "layers.3")
    assert select(p).instances(Tensor).names == tuple(path for path, _ in pn.tree.named_leaves(p))
    assert select(p).instances(tuple).names == ("layers", "layers.1.layers")
    assert select(p).instances(type(None)).names == ()


def test_where(device: torch.device) -> None:
    """A predicate filters the leaves of a fresh selection, and otherwise the selected nodes."""
    p = Chain((make_affine(device=device), make_affine(2, 2, bias=False, device=device)))
    assert select(p).where(lambda leaf: leaf.dim() == 1).names == ("layers.0.bias",)
    assert select(p).instances(Affine).where(lambda layer: layer.bias is None).names == ("layers.1",)


def test_chained_selections(device: torch.device) -> None:
    """Every step narrows the one before, with paths relative to the selected nodes."""
    p = make_tree(device)
    assert select(p).instances(Affine).paths("weight").names == (
        "layers.0.weight",
        "layers.1.layers.0.weight",
        "layers.2.content.encoder.weight",
    )
    assert select(p).paths("layers.2").instances(Affine).paths("*").names == ("layers.2.content.encoder.weight",)
    assert select(p).paths("layers.1").instances(Chain).names == ("layers.1",)
    assert select(p).instances(Chain).instances(Scale).names == ("layers.1.layers.1",)
    assert select(p).instances(Chain).paths("**.factor").names == ("layers.1.layers.1.factor",)


def test_get(device: torch.device) -> None:
    """The selected nodes themselves come back."""
    p = make_tree(device)
    assert select(p).paths("layers.0").get() == (p.layers[0],)
    assert select(p).get() == (p,)
    assert [type(node) for node in select(p).paths("layers.*").get()] == [Affine, Chain, Box, Count]


def test_set_and_apply(device: torch.device) -> None:
    """Surgery gives a new tree that shares everything else; the old one stays."""
    p = make_tree(device)
    x = torch.zeros(3, device=device)
    q = select(p).paths("layers.1.layers.0").set(Scale(x))
    assert type(q.layers[1].layers[0]) is Scale
    assert type(p.layers[1].layers[0]) is Affine
    assert q.layers[0] is p.layers[0]
    assert q.layers[1].name == "inner"
    r = select(p).instances(Affine).apply(lambda layer: pn.replace(layer, bias=x))
    assert [layer.bias is x for layer in select(r).instances(Affine).get()] == [True] * 3
    assert select(p).paths("layers.0.bias").set(None).layers[0].bias is None
    assert select(p).set(3) == 3
    s = select(p).paths("layers.2.content.weight").set(x)
    assert s.layers[2].content["weight"] is x
    assert list(s.layers[2].content) == ["weight", "encoder"]


def test_surgery_keeps_marks(device: torch.device) -> None:
    """Frozen and tied leaves stay what they are when other nodes change."""
    p = pn.tree.freeze(make_tied(device=device), "layers.0.bias")
    q = select(p).paths("layers.1.bias").apply(torch.zeros_like)
    assert pn.tree.count(q) == 15
    assert pn.tree.count(q, trainable=True) == 12
    assert torch.equal(pn.tree.untie(q).layers[1].weight, p.layers[0].weight)


def test_repr_of_a_selection(device: torch.device) -> None:
    """A selection prints the paths that it holds."""
    s = select(make_chain(device=device)).paths("**.weight")
    assert repr(s) == "<2 nodes of Chain: layers.0.weight, layers.1.weight>"


def test_empty_selections() -> None:
    """Reading or changing an empty selection is an error that names what was asked and what there is."""
    p = make_chain()
    nodes = "layers, layers.0, layers.0.weight, layers.0.bias, layers.1, layers.1.weight."
    cases: list[Any] = [
        (
            lambda: select(p).paths("layer.0").get(),
            "get",
            f"paths 'layer.0') is empty in this Chain; its nodes are: {nodes}",
        ),
        (
            lambda: select(p).paths(["a", "b"]).set(0),
            "set",
            f"paths 'a', 'b') is empty in this Chain; its nodes are: {nodes}",
        ),
        (
            lambda: select(p).instances(Affine).paths("scale").apply(abs),
            "apply",
            f"instances of Affine, then paths 'scale') is empty in this Chain; its nodes are: {nodes}",
        ),
        (
            lambda: select(p).instances((Count, int | str)).where(bool).get(),
            "get",
            f"instances of Count or int | str, then where bool) is empty in this Chain; its nodes are: {nodes}",
        ),
        (
            lambda: select({str(n): n for n in range(10)}).where(lambda leaf: leaf > 9).get(),
            "get",
            "where <lambda>) is empty in this dict; its nodes are: 0, 1, 2, 3, 4, 5, 6, 7 and others.",
        ),
        (
            lambda: select(torch.ones(1)).paths("weight").get(),
            "get",
            "paths 'weight') is empty in this Tensor; its nodes are: none below the top.",
        ),
    ]
    for use, verb, rest in cases:
        with pytest.raises(SelectionError) as error:
            use()
        assert str(error.value) == f"{verb}: the selection ({rest}"
        assert isinstance(error.value, LookupError)


def test_surgery_puts_in_what_fields_can_hold(device: torch.device) -> None:
    """What a constructor refuses is refused with its path; a list is stored as a tuple, None is an absent child."""
    p = make_tree(device)
    cases: list[Any] = [
        (
            lambda: select(p).paths("layers.0.weight").set("relu"),
            "set: layers.0.weight holds parameters or children and cannot hold the string 'relu': declare the field "
            "as pn.static(), or wrap a function with purenn.layers.Lambda(function).",
        ),
        (
            lambda: select(p).paths("layers.0").apply(lambda _: torch.relu),
            "apply: layers.0 holds parameters or children and cannot hold the function relu: declare the field as "
            "pn.static(), or wrap a function with purenn.layers.Lambda(function).",
        ),
        (
            lambda: select(p).paths("layers.1").set([torch.nn.Tanh()]),
            "set: layers.1.0 cannot hold the module Tanh, which is no pytree: turn it into a container with "
            "bridge.from_module(module).",
        ),
    ]
    for use, message in cases:
        with pytest.raises(ContainerError) as error:
            use()
        assert str(error.value) == message
    assert select(p).paths("layers.0").set([p.layers[0]]).layers[0] == (p.layers[0],)
    assert select(p).paths("layers.0.bias").set(None).layers[0].bias is None


def test_arguments_of_another_kind(device: torch.device) -> None:
    """A name in the place of a class, and a number in the place of a pattern, are refused."""
    p = make_tree(device)
    with pytest.raises(ArgumentError) as error:
        select(p).instances("Affine")
    assert str(error.value) == "instances takes a class, or a tuple of classes, got 'Affine'."
    with pytest.raises(ArgumentError) as error:
        pn.tree.freeze(p, lambda s: s.paths(["layers.*", 3]))
    assert str(error.value) == "paths takes a pattern such as 'encoder.*', or a list of them, got 3."


def test_selecting_twice(device: torch.device) -> None:
    """Two patterns for one node, and a node within another, are refused."""
    p = make_tree(device)
    with pytest.raises(SelectionError) as error:
        select(p).paths(["**.weight", "layers.0.*"])
    assert str(error.value) == (
        "'layers.0.weight' is selected twice: by '**.weight' and by 'layers.0.*'. Make the patterns disjoint."
    )
    with pytest.raises(SelectionError) as error:
        select(p.layers[0].weight).paths(["**", "**"])
    assert str(error.value) == "the tree itself is selected twice: by '**' and by '**'. Make the patterns disjoint."
    cases: list[Any] = [
        (
            lambda: select(p).instances(Chain).set(None),
            "set: the selection (instances of Chain) hits 'layers.1' twice, once within the whole tree: select the "
            "outer or the inner nodes only.",
        ),
        (
            lambda: select(p).paths(["layers.1", "**.factor"]).apply(lambda node: node),
            "apply: the selection (paths 'layers.1', '**.factor') hits 'layers.1.layers.1.factor' twice, once within "
            "'layers.1': select the outer or the inner nodes only.",
        ),
    ]
    for use, message in cases:
        with pytest.raises(SelectionError) as error:
            use()
        assert str(error.value) == message
    assert len(select(p).instances(Chain).get()) == 2
