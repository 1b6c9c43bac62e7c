"""Ensembles as one tree."""

from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, Scale, affine, double, make_affine, make_chain, make_tied

import purenn as pn
from purenn.errors import ArgumentError, StructureError


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_stack_and_unstack(dim: int, device: torch.device) -> None:
    """Stacking adds an axis to every leaf; unstacking gives the trees again, as views."""
    trees = [pn.tree.map(lambda x, n=n: x + n, make_chain(device=device)) for n in range(3)]
    stacked = pn.tree.stack(trees, dim=dim)
    for leaf, parts in zip(pn.tree.leaves(stacked), zip(*map(pn.tree.leaves, trees), strict=True), strict=True):
        assert torch.equal(leaf, torch.stack(parts, dim))
    again = pn.tree.unstack(stacked, dim=dim)
    assert len(again) == 3
    for one, same in zip(trees, again, strict=True):
        assert pn.tree.equal(one, same)
    first = pn.tree.leaves(stacked)[0]
    assert pn.tree.leaves(again[1])[0].untyped_storage().data_ptr() == first.untyped_storage().data_ptr()


def test_stacked_models_are_an_ensemble(device: torch.device) -> None:
    """vmap over a stacked model applies its members."""
    models = [make_affine(**double(device)), pn.tree.map(lambda w: -w, make_affine(**double(device)))]
    x = torch.linspace(0, 1, 3, **double(device))
    ys = torch.func.vmap(affine, (0, None))(pn.tree.stack(models), x)
    for y, p in zip(ys, models, strict=True):
        assert torch.allclose(y, p(x), rtol=0, atol=1e-12)


def test_one_tree_and_any_iterable(device: torch.device) -> None:
    """One tree gets an axis of length one; any iterable of trees will do."""
    p = make_affine(device=device)
    assert pn.tree.stack([p]).weight.shape == (1, 2, 3)
    assert pn.tree.stack(p for _ in range(2)).weight.shape == (2, 2, 3)  # pyright: ignore[reportArgumentType]


def test_leaves_that_are_no_tensors(device: torch.device) -> None:
    """Equal numbers are kept as they are, options and marks too; ties stay ties."""
    p = pn.tree.freeze(Chain((Scale(torch.ones(1, device=device), 3), Box((1.5, "x" and 2)))), "layers.0")
    stacked = pn.tree.stack([p, p])
    assert stacked.layers[1].content == (1.5, 2)
    assert pn.tree.equal(pn.tree.unstack(stacked)[1], p)
    assert len(pn.tree.leaves(pn.tree.stack([make_tied(device=device)] * 2))) == 3


def test_axis_of_length_zero() -> None:
    """An empty ensemble has no members."""
    assert pn.tree.unstack({"a": torch.ones(0, 3)}) == ()


def test_stack_errors() -> None:
    """Trees that cannot be one tree are refused with the path."""
    x = torch.ones(2)
    tail = "; all must have the same shape, dtype and device."
    cases: list[Any] = [
        ([], {}, ArgumentError, "stack needs at least one tree, got none."),
        (
            [Affine(x), Affine(x, x)],
            {},
            StructureError,
            "stack: the trees differ at 'bias': None against a Tensor. Both must have the same classes, absent "
            "children and static fields.",
        ),
        (
            [Affine(x), Affine(x), Affine(torch.ones(3))],
            {},
            StructureError,
            f"stack: 'weight' is f32[2] on cpu in tree 0 and f32[3] on cpu in tree 2{tail}",
        ),
        (
            [Affine(x), Affine(x.double())],
            {},
            StructureError,
            f"stack: 'weight' is f32[2] on cpu in tree 0 and f64[2] on cpu in tree 1{tail}",
        ),
        (
            [x, x.to("meta")],
            {},
            StructureError,
            f"stack: the tree itself is f32[2] on cpu in tree 0 and f32[2] on meta in tree 1{tail}",
        ),
        (
            [{"a": 1}, {"a": 2}],
            {},
            StructureError,
            f"stack: 'a' is 1 in tree 0 and 2 in tree 1{tail}",
        ),
        (
            [{"a": 1}, {"a": x}],
            {},
            StructureError,
            f"stack: 'a' is 1 in tree 0 and f32[2] on cpu in tree 1{tail}",
        ),
        (
            [Affine(x), Affine(x)],
            {"dim": 2},
            StructureError,
            "stack: 'weight' is f32[2] and has no place for a new axis 2.",
        ),
        (
            [x, x],
            {"dim": -3},
            StructureError,
            "stack: the tree itself is f32[2] and has no place for a new axis -3.",
        ),
    ]
    alone = "stack takes a list of trees, got {got}: write stack([first, second])."
    cases += [
        (Affine(x), {}, ArgumentError, alone.format(got="an Affine")),
        (x, {}, ArgumentError, alone.format(got="a Tensor")),
    ]
    for trees, options, kind, message in cases:
        with pytest.raises(kind) as error:
            pn.tree.stack(trees, **options)
        assert str(error.value) == message


def test_unstack_errors() -> None:
    """Leaves without a common axis are refused with the path."""
    x = torch.ones(2, 3)
    cases: list[Any] = [
        ((x, x.T), {}, "unstack: axis 0 has length 2 in '0', but 3 in '1'."),
        ({"a": x, "b": x[0]}, {"dim": 1}, "unstack: 'b' is f32[3] and has no axis 1."),
        (torch.ones(()), {}, "unstack: the tree itself is f32[] and has no axis 0."),
        ((1, None), {}, "unstack: the tree has no tensors, so the number of trees is unknown."),
    ]
    for tree, options, message in cases:
        with pytest.raises(StructureError) as error:
            pn.tree.unstack(tree, **options)
        assert str(error.value) == message
