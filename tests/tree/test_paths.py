"""The names of leaves."""

from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, make_affine, make_chain

import purenn as pn
from purenn.errors import PathError

Pair = namedtuple("Pair", "left right")


def names(tree: Any) -> list[str]:
    return [path for path, _ in pn.tree.named_leaves(tree)]


def test_named_leaves(device: torch.device) -> None:
    """Leaves are named by fields, dict keys and positions, in the order of the fields; absent ones are left out."""
    p = make_chain(device=device)
    named = pn.tree.named_leaves(p)
    assert [path for path, _ in named] == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
    for (_, leaf), same in zip(named, pn.tree.leaves(p), strict=True):
        assert leaf is same
    assert named[0][1] is p.layers[0].weight


def test_a_tree_that_is_a_leaf_has_the_empty_path(device: torch.device) -> None:
    """A bare tensor is a tree of one leaf without a name."""
    x = torch.ones(1, device=device)
    assert pn.tree.named_leaves(x) == [("", x)]
    assert pn.tree.named_leaves(None) == []
    assert pn.tree.named_leaves(pn.tree.HOLE) == []


def test_dict_order() -> None:
    """Leaves of a dict come in the order of its sorted keys, those of an OrderedDict in its own."""
    assert names({"b": 1, "a": 2, "c": {"y": 3, "x": 4}}) == ["a", "b", "c.x", "c.y"]
    assert names(OrderedDict(b=1, a=2)) == ["b", "a"]
    assert names(defaultdict(list, b=1, a=2)) == ["a", "b"]
    assert list(pn.tree.map(lambda x: x, {"b": 1, "a": 2})) == ["b", "a"]


def test_keys_and_positions() -> None:
    """Integer keys, negative ones too, and positions of all sequences are numbers."""
    assert names({3: 1, -1: 2}) == ["-1", "3"]
    assert names([Pair(1, (2,))]) == ["0.0", "0.1.0"]
    assert names(Box({"a": Chain((make_affine(),))})) == ["content.a.layers.0.weight", "content.a.layers.0.bias"]


@pytest.mark.parametrize("key", ["a.", ".b", "a..b", "", ".", True, 1.5, None, (1, 2), b"a"])
def test_keys_that_cannot_be_paths(key: Any) -> None:
    """Dict keys that would make paths ambiguous are refused."""
    with pytest.raises(PathError) as error:
        pn.tree.named_leaves({"first": {key: 1}})
    assert str(error.value) == (
        f"the dict key {key!r} cannot be a part of a path: use integers or strings, with something on either side of "
        f"each dot, so that paths are unique and equal state_dict keys."
    )


def test_keys_with_dots() -> None:
    """A dict with the keys of a state_dict is a tree like any other: paths, selection, gradients, files."""
    tree = {"fc.weight": torch.ones(2), "fc.bias": torch.zeros(2), "norm": {"a.b": torch.ones(1)}}
    assert names(tree) == ["fc.bias", "fc.weight", "norm.a.b"]
    assert pn.tree.select(tree).paths("fc.weight").get() == (tree["fc.weight"],)
    box = Box({"a.b": torch.ones(2), "c": torch.ones(2)})
    with pytest.raises(pn.errors.StructureError) as error:
        pn.tree.tie(box, {"content.c": "content.a.b"})
    assert str(error.value) == (
        "'content.c' (f32[2]) cannot be tied to 'content.a.b' (f32[2]): the dict key 'a.b' on the way has a dot, which "
        "ties cannot follow."
    )
    assert torch.equal(pn.grad(lambda p: (3 * p["fc.weight"]).sum())(tree)["fc.weight"], torch.full((2,), 3.0))
    with pytest.raises(PathError) as error:
        pn.tree.named_leaves({"a": {"b": 1}, "a.b": 2})
    assert str(error.value) == "two leaves have the path 'a.b': use dict keys that differ as text."


def test_two_leaves_with_one_path() -> None:
    """Keys that differ but look the same are refused, since paths must be unique."""
    for _ in range(2):  # the second time from the cache of structures, if there were an entry
        with pytest.raises(PathError) as error:
            pn.tree.named_leaves({"a": {1: 2, "1": 3}})
        assert str(error.value) == "two leaves have the path 'a.1': use dict keys that differ as text."


def test_structures_are_not_confused(device: torch.device) -> None:
    """Trees that differ only in marks, options or key types have their own names and kinds."""
    x = torch.ones(1, device=device)
    for _ in range(2):
        assert pn.tree.count(Box(x, x)) == 1
        assert pn.tree.count(Box(Box(x), Box(x))) == 1
        assert pn.tree.count(pn.tree.freeze(Affine(x, x)), trainable=True) == 0
        assert pn.tree.count(Affine(x, x), trainable=True) == 2
        assert names({1: x}) == names({"1": x})
        assert names(Box(x, mode=1)) == names(Box(x, mode=2)) == ["content"]


def test_errors_name_what_is_there() -> None:
    """A path that names nothing is an error that lists what is there at the place where it ends."""
    p = Chain((make_affine(), make_affine(bias=False)))
    cases = [
        ("layres.0", "below the top of the tree there is 'layers', but no 'layres'."),
        ("layers.2.bias", "below 'layers' there is '0', '1', but no '2'."),
        ("layers.0.weight.x", "below 'layers.0.weight' there is nothing, it is a leaf, but no 'x'."),
    ]
    for path, rest in cases:
        with pytest.raises(PathError) as error:
            pn.tree.tie(p, {"layers.0.weight": path})
        assert str(error.value) == f"the path '{path}' names nothing: {rest}"
        assert isinstance(error.value, LookupError)
    with pytest.raises(PathError) as error:
        pn.tree.tie(Box(()), {"content.0": "content"})
    assert str(error.value) == ("the path 'content.0' names nothing: below 'content' there is nothing, but no '0'.")
