"""Mapping over leaves."""

from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, Count, Scale, make_affine, make_chain, make_tied

import purenn as pn
from purenn.errors import StructureError
from purenn.tree import HOLE


def test_map_over_one_tree(device: torch.device) -> None:
    """Every leaf is replaced by the function's result; classes, options and marks stay."""
    p = pn.tree.freeze(Chain((Scale(torch.ones(1, device=device), 3), make_affine(device=device))), "layers.1.bias")
    q = pn.tree.map(lambda x: x.shape, p)
    assert pn.tree.leaves(q) == [(1,), (2, 3), (2,)]
    assert q.layers[0].power == 3
    assert pn.tree.count(pn.tree.map(torch.zeros_like, p), trainable=True) == 7


def test_map_over_several_trees(device: torch.device) -> None:
    """The function gets the corresponding leaves; the result has the structure of the first tree."""
    p = make_chain(device=device)
    q = pn.tree.map(lambda a, b, c: a + 2 * b - c, p, p, p)
    assert pn.tree.equal(q, pn.tree.map(lambda a: a + 2 * a - a, p))


def test_map_calls_in_the_order_of_leaves() -> None:
    """Leaves are visited once each, in their order, numbers and strings included."""
    seen: list[Any] = []
    pn.tree.map(seen.append, ({"b": 1, "a": "x"}, None, [2.5]))
    assert seen == ["x", 1, 2.5]


def test_map_with_holes(device: torch.device) -> None:
    """Where a tree has a hole the function is not called and the first tree's leaf, or hole, stays."""
    p = Count(torch.full((2,), 3.0, device=device), torch.zeros(1, device=device))
    gradient, rest = pn.tree.partition(p)
    stepped = pn.tree.map(lambda w, g: w - g, p, gradient)
    assert (stepped.gain.tolist(), stepped.calls) == ([0.0, 0.0], p.calls)
    assert pn.tree.map(lambda g, w: g - w, gradient, p).calls is HOLE
    assert pn.tree.map(lambda a, b: a, gradient, rest).calls is HOLE
    assert pn.tree.map(lambda a, b: a, gradient, rest).gain is p.gain
    assert pn.tree.map(lambda a: a + 1, gradient).calls is HOLE


def test_map_over_ties(device: torch.device) -> None:
    """A tied leaf is mapped once and stays tied."""
    p = make_tied(device=device)
    q = pn.tree.map(lambda x: x + 1, p)
    assert pn.tree.count(q) == pn.tree.count(p) == 15
    assert torch.equal(pn.tree.untie(q).layers[1].weight, p.layers[0].weight + 1)


def cases() -> list[Any]:
    x = torch.ones(1)
    return [
        (Affine(x), Affine(x, x), "'bias': None against a Tensor"),
        (Affine(x, x), Affine(x), "'bias': a Tensor against None"),
        (Affine(x), Scale(x), "the top: an Affine against a Scale"),
        (x, (x,), "the top: a Tensor against a tuple"),
        ((x, (x, x)), (x, (x,)), "'1': the children [0, 1] against [0]"),
        ({"a": x}, {"b": x}, "the top: the children ['a'] against ['b']"),
        (Chain((Scale(x, 1),)), Chain((Scale(x, 2),)), "'layers.0': the static field 'power': 1 against 2"),
        (
            Chain((Affine(x, x),)),
            Chain((pn.tree.freeze(Affine(x, x)),)),
            "'layers.0': the marks of frozen and tied leaves: None against Marks(frozen={bias, weight}, tied=False)",
        ),
        (
            Box((pn.tree.Alias("a"), x)),
            Box((pn.tree.Alias("b"), x)),
            "'content.0': Alias(a) against Alias(b)",
        ),
        # Holes are no difference, so the next one is named.
        (Box((x, x), x), Box((HOLE, HOLE), None), "'state': a Tensor against None"),
        (Box((HOLE, x), x), Box((x, HOLE), None), "'state': a Tensor against None"),
    ]


@pytest.mark.parametrize(("first", "other", "difference"), cases())
def test_trees_that_differ(first: Any, other: Any, difference: str) -> None:
    """Trees of different structure are refused, with the first path at which they differ."""
    for trees in ((first, other), (first, first, other)):
        with pytest.raises(StructureError) as error:
            pn.tree.map(lambda *leaves: leaves[0], *trees)
        assert str(error.value) == (
            f"map: the trees differ at {difference}. Both must have the same classes, absent children and static "
            f"fields."
        )
