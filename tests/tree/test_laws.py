"""Laws that hold for every tree."""

import tempfile
from pathlib import Path
from typing import Any

import optree
import torch
from _models import Affine, Box
from _strategies import trees
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as torch_pytree

import purenn as pn
from purenn.tree import HOLE


def same(a: Any, b: Any) -> bool:
    """Equal, with the very same leaves."""
    leaves = zip(pn.tree.leaves(a), pn.tree.leaves(b), strict=True)
    return bool(pn.tree.equal(a, b)) and all(x is y for x, y in leaves)


@given(tree=trees())
def test_unflatten_inverts_flatten(tree: Any) -> None:
    """Flattening and rebuilding is the identity, in optree's registry and in torch's."""
    leaves, spec = optree.tree_flatten(tree)
    assert same(optree.tree_unflatten(spec, leaves), tree)
    values, torch_spec = torch_pytree.tree_flatten(tree)
    assert same(torch_pytree.tree_unflatten(values, torch_spec), tree)
    assert {id(v) for v in values if v is not None} == {id(leaf) for leaf in leaves}
    again, same_spec = optree.tree_flatten(optree.tree_unflatten(spec, leaves))
    assert same_spec == spec
    assert hash(same_spec) == hash(spec)
    assert all(x is y for x, y in zip(again, leaves, strict=True))


OPTIONS = st.sampled_from(
    [
        {},
        {"kind": "parameter"},
        {"kind": "buffer"},
        {"where": lambda leaf: leaf.numel() > 1},
        {"where": torch.is_complex},
        {"paths": "**"},
        {"paths": "*"},
        {"paths": "**.weight"},
        {"instances": torch.Tensor},
        {"instances": (Affine, Box)},
    ]
)


@given(tree=trees(), options=OPTIONS)
def test_combine_inverts_partition(tree: Any, options: Any) -> None:
    """The two parts have disjoint leaves and combine to the tree, whatever the choice."""
    try:
        chosen, rest = pn.tree.partition(tree, **options)
    except pn.errors.SelectionError:
        return
    assert len(pn.tree.leaves(chosen)) + len(pn.tree.leaves(rest)) == len(pn.tree.leaves(tree))
    assert same(pn.tree.combine(chosen, rest), tree)
    assert same(pn.tree.combine(rest, chosen), tree)
    assert same(pn.tree.combine(*pn.tree.partition(chosen), rest), tree)


@given(tree=trees())
def test_map_laws(tree: Any) -> None:
    """Mapping the identity changes nothing; two maps are one map of the composition, over several trees too."""

    def f(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.complex128) + 1

    def g(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    assert same(pn.tree.map(lambda x: x, tree), tree)
    assert pn.tree.equal(pn.tree.map(g, pn.tree.map(f, tree)), pn.tree.map(lambda x: g(f(x)), tree))
    assert same(pn.tree.map(lambda a, b: b, pn.tree.map(f, tree), tree), tree)
    assert pn.tree.leaves(pn.tree.map(id, tree)) == [id(x) for x in pn.tree.leaves(tree)]


@given(tree=trees())
def test_map_skips_holes(tree: Any) -> None:
    """Mapping over a part leaves the rest of the tree alone."""
    part, _ = pn.tree.partition(tree, where=lambda x: x.numel() > 1)
    changed = pn.tree.map(lambda x, y: y * 0 + 1, tree, part)
    for old, new in zip(pn.tree.leaves(tree), pn.tree.leaves(changed), strict=True):
        assert (new is old) == (old.numel() <= 1)


@given(tree=trees(), number=st.integers(1, 3))
def test_unstack_inverts_stack(tree: Any, number: int) -> None:
    """Stacked trees come apart again."""
    members = [pn.tree.map(lambda x, n=n: x if x.dtype == torch.bool else x + n, tree) for n in range(number)]
    stacked = pn.tree.stack(members)
    if not pn.tree.leaves(tree):
        assert pn.tree.equal(stacked, tree)
        return
    for member, again in zip(members, pn.tree.unstack(stacked), strict=True):
        assert pn.tree.equal(member, again)


@given(tree=trees())
def test_paths(tree: Any) -> None:
    """Every leaf has one path of its own, and the path leads to it."""
    named = pn.tree.named_leaves(tree)
    assert len({path for path, _ in named}) == len(named) == len(pn.tree.leaves(tree))
    for path, leaf in named:
        chosen = pn.tree.select(tree).paths(path or "**")
        assert chosen.names == (path,)
        assert chosen.get()[0] is leaf
        assert chosen.set(HOLE) is not None
        part, _ = pn.tree.partition(tree, paths=path or "**")
        assert [p for p, _ in pn.tree.named_leaves(part)] == [path]


@given(tree=trees())
def test_surgery_on_all_leaves_is_a_map(tree: Any) -> None:
    """Applying a function to all selected leaves equals the map."""
    if pn.tree.leaves(tree):
        assert pn.tree.equal(pn.tree.select(tree).paths("**").apply(torch.conj), pn.tree.map(torch.conj, tree))
        assert same(pn.tree.select(tree).instances(torch.Tensor).apply(lambda x: x), tree)


@given(tree=trees())
def test_counts_add_up(tree: Any) -> None:
    """Kinds, and trained and untrained leaves, partition the elements of a tree."""
    total = sum(leaf.numel() for leaf in pn.tree.leaves(tree))
    count = pn.tree.count
    assert count(tree, kind="all") == count(tree) + count(tree, kind="buffer") == total
    assert count(tree) == count(tree, trainable=True) + count(tree, trainable=False)
    assert count(tree, trainable=True) == count(pn.tree.partition(tree)[0], kind="all")


@given(tree=trees())
def test_freezing_round_trip(tree: Any) -> None:
    """Freezing leaves nothing to train, and unfreezing all marks gives a tree without any."""
    p = Box(tree)
    frozen = pn.tree.freeze(p)
    assert pn.tree.count(frozen, trainable=True) == 0
    assert same(pn.tree.freeze(frozen), frozen)
    assert same(pn.tree.unfreeze(frozen), pn.tree.unfreeze(p))


@given(tree=trees())
def test_untie_inverts_tie(tree: Any) -> None:
    """Tying what is shared keeps one leaf of each tensor and kind, in nested tied trees too; untying gives all back."""
    p = Box((tree, tree))
    tied = pn.tree.tie(p)
    assert same(pn.tree.untie(tied), p)
    kinds = [{id(x) for x in pn.tree.leaves(pn.tree.partition(p, kind=kind)[0])} for kind in ("parameter", "buffer")]
    assert len(pn.tree.leaves(tied)) == sum(map(len, kinds))
    twice = pn.tree.tie(Box((tied, p, tied)))
    assert len(pn.tree.leaves(twice)) == len(pn.tree.leaves(tied))
    assert same(pn.tree.untie(twice), Box((p, p, p)))


@given(tree=trees())
def test_save_and_load(tree: Any) -> None:
    """A file gives the tree back."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tree.safetensors"
        pn.save(file, tree)
        assert pn.tree.equal(pn.load(file, like=pn.tree.map(torch.zeros_like, tree)), tree)
        assert pn.tree.equal(pn.load(file, like=pn.tree.to(tree, "meta")), tree)


@given(tree=trees(), other=trees())
def test_comparison(tree: Any, other: Any) -> None:
    """A tree equals itself, and comparisons are symmetric and agree with the structures."""
    assert pn.tree.equal(tree, pn.tree.map(torch.clone, tree))
    assert pn.tree.allclose(tree, tree)
    there, back = pn.tree.equal(tree, other), pn.tree.equal(other, tree)
    assert (there.same, there.path) == (back.same, back.path)
    if optree.tree_structure(tree) != optree.tree_structure(other):
        assert not there


@given(tree=trees())
def test_text(tree: Any) -> None:
    """Every tree can be printed and summarised, without the numbers in its tensors."""
    text = repr(Box(tree))
    assert "tensor(" not in text
    lines = pn.summary(tree).splitlines()
    assert len(lines) == 3 + len(pn.tree.leaves(tree))
