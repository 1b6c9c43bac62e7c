"""Mapping over leaves, and the leaves with their names."""

from collections.abc import Callable
from typing import Any, TypeVar

import optree
import torch

from purenn.errors import StructureError
from purenn.tree._checks import a_or_an
from purenn.tree._holes import HOLE
from purenn.tree._walk import fits, flatten, one_level, same_structure, unflatten

T = TypeVar("T")


def leaves(tree: Any) -> list[Any]:
    """All leaves of a tree, in the order of its fields; absent (None) children have none."""
    return optree.tree_leaves(tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """All leaves with their dotted paths: ``[("layers.0.weight", tensor), ...]``.

    Raises:
        PathError: two leaves would have the same path.
    """
    values, structure = flatten(tree)
    return list(zip(structure.paths, values, strict=True))


def map(f: Callable[..., Any], tree: T, /, *rest: Any) -> T:
    """Apply `f` to every leaf (and to the corresponding leaves of `rest`) and rebuild the tree with the results.

    Where one of the trees has a `HOLE`, `f` is not called and the result has what `tree` has there. Gradients have
    holes in the place of buffers and frozen leaves, so ``pn.tree.map(lambda w, g: w - 0.1 * g, p, grads)`` is an update
    of all that is trained.

    Args:
        f: called with one leaf of each tree.
        tree: the tree whose structure the result has.
        *rest: trees of the same structure, but for holes.

    Raises:
        StructureError: a tree differs in structure from the first; the error names the first differing path.
    """
    trees: tuple[Any, ...] = (tree, *rest)
    flat = [optree.tree_flatten(one) for one in trees]
    spec = flat[0][1]
    if all(same_structure(other, spec) for _, other in flat[1:]):
        return unflatten(spec, [f(*items) for items in zip(*(values for values, _ in flat), strict=True)])
    flat = [flatten_with_holes(one) for one in trees]
    spec = flat[0][1]
    for other, (_, other_spec) in zip(rest, flat[1:], strict=True):
        if not fits(other_spec, spec):
            raise structures_differ("map", filled(tree), filled(other))
    columns = zip(*(values for values, _ in flat), strict=True)
    return unflatten(spec, [items[0] if any(item is HOLE for item in items) else f(*items) for items in columns])


def flatten_with_holes(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    """The leaves and holes of a tree, and its structure if holes count as leaves."""
    return optree.tree_flatten(tree, is_leaf=_is_hole)


def filled(tree: Any) -> Any:
    """A copy in which leaves and holes look alike, so that only other differences of structure remain."""
    return optree.tree_map(lambda _: torch.empty(0), tree, is_leaf=_is_hole)


def _is_hole(node: Any) -> bool:
    return node is HOLE


def structures_differ(what: str, first: Any, other: Any) -> StructureError:
    """The error of the function `what` for two trees that differ in structure. It names the first differing path."""
    where, reason = first_difference(first, other, ())
    return StructureError(
        f"{what}: the trees differ at {where}: {reason}. Both must have the same classes, absent children and static "
        f"fields."
    )


def first_difference(first: Any, other: Any, entries: tuple) -> tuple[str, str]:
    """Path and description of the first difference in structure of two trees that do differ."""
    # Any key will do for a message, those that no path may have as well.
    where = f"'{'.'.join(map(str, entries))}'" if entries else "the top"
    if type(first) is not type(other):
        return where, f"{_name(first)} against {_name(other)}"
    one, two = one_level(first), one_level(other)
    assert one is not None
    assert two is not None
    if one.entries != two.entries:
        return where, f"the children {list(one.entries)} against {list(two.entries)}"
    for entry, a, b in zip(one.entries, one.children, two.children, strict=True):
        if optree.tree_structure(a) != optree.tree_structure(b):
            return first_difference(a, b, (*entries, entry))
    spec = getattr(type(first), "__container_spec__", None)
    for name in () if spec is None else (*spec.static, "_marks"):
        if getattr(first, name) != getattr(other, name):
            label = "the marks of frozen and tied leaves" if name == "_marks" else f"the static field '{name}'"
            return where, f"{label}: {getattr(first, name)!r} against {getattr(other, name)!r}"
    return where, f"{first!r} against {other!r}"


def _name(node: Any) -> str:
    return str(node) if node is None or node is HOLE else a_or_an(node)
