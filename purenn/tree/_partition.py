"""Splitting a tree into two that fit together again, and freezing leaves."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from purenn.errors import ArgumentError, StructureError
from purenn.tree._fields import BUFFER, PARAMETER, Marks, changed_marks, is_container
from purenn.tree._holes import HOLE
from purenn.tree._map import filled, flatten_with_holes, structures_differ
from purenn.tree._select import Selection, chosen, select
from purenn.tree._ties import aliases_of
from purenn.tree._walk import (
    Entries,
    Structure,
    fits,
    flatten,
    is_trainable,
    join,
    one_level,
    parse,
    quoted,
    unflatten,
)

T = TypeVar("T")


def partition(
    p: T,
    *,
    kind: str | None = None,
    paths: str | Sequence[str] | None = None,
    instances: type | tuple[type, ...] | None = None,
    where: Callable[[Any], bool] | None = None,
) -> tuple[T, T]:
    """Split a tree into ``(chosen, rest)``: two trees with `HOLE` in the place of each other's leaves.

    Without options the trainable leaves are chosen: floating or complex parameters that are not frozen. Of the options
    one may be given.

    Args:
        p: the tree.
        kind: "parameter" or "buffer".
        paths: one or several path patterns, as in `Selection.paths`; all leaves below a hit are chosen, and the leaves
            to which aliases below it are tied.
        instances: a class or several; all leaves below an instance are chosen, in the same way.
        where: a predicate on leaves.

    Raises:
        ArgumentError: several options at once, or an unknown kind.
        SelectionError: `paths` or `instances` hit nothing.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> pn.tree.partition(Linear.init(pn.random.key(0), 3, 2), paths="bias")[0]
        Linear(weight=HOLE, bias=f32[2])
    """
    given = [
        name
        for name, value in (("kind", kind), ("paths", paths), ("instances", instances), ("where", where))
        if value is not None
    ]
    if len(given) > 1:
        raise ArgumentError(f"partition takes one of kind, paths, instances and where, got {' and '.join(given)}.")
    if kind not in (None, PARAMETER, BUFFER):
        raise ArgumentError(f"partition: kind must be 'parameter' or 'buffer', got {kind!r}.")
    values, structure = flatten(p)
    if paths is not None or instances is not None:
        selection = select(p).instances(instances) if instances is not None else select(p).paths(paths or ())
        chosen = selected_leaves(p, structure, selection.require("partition"))
    elif where is not None:
        chosen = [bool(where(value)) for value in values]
    elif kind is not None:
        chosen = [leaf.kind == kind for leaf in structure.leaves]
    else:
        chosen = [is_trainable(leaf, value) for leaf, value in zip(structure.leaves, values, strict=True)]
    pairs = list(zip(values, chosen, strict=True))
    return (
        structure.rebuild([value if hit else HOLE for value, hit in pairs]),
        structure.rebuild([HOLE if hit else value for value, hit in pairs]),
    )


def combine(first: T, *others: T) -> T:
    """Put together what `partition` has split: of every place, the one tree that has no `HOLE` there.

    A place where all trees have a `HOLE` keeps it, so parts of parts can be combined as well.

    Raises:
        StructureError: the trees differ in structure, or two have a leaf in the same place.
    """
    flat = [flatten_with_holes(tree) for tree in (first, *others)]
    spec = flat[0][1]
    for other, (_, other_spec) in zip(others, flat[1:], strict=True):
        if not fits(other_spec, spec):
            raise structures_differ("combine", filled(first), filled(other))
    combined = []
    for number, items in enumerate(zip(*(values for values, _ in flat), strict=True)):
        present = [item for item in items if item is not HOLE]
        if len(present) > 1:
            path = quoted(".".join(map(str, spec.paths()[number])))
            raise StructureError(f"combine: {len(present)} trees have a leaf at {path}; only one may.")
        combined.append(present[0] if present else HOLE)
    return unflatten(spec, combined)


def selected_leaves(p: Any, structure: Structure, selection: Selection[Any]) -> list[bool]:
    """For every leaf, whether it lies at or below a selected node. An alias there stands for its leaf."""
    tops = set(selection.entries)

    def below(entries: Entries) -> bool:
        return any(entries[:n] in tops for n in range(len(entries) + 1))

    tied = {leaf for alias, leaf in aliases_of(p).items() if below(parse(p, alias))}
    return [below(leaf.entries) or leaf.path in tied for leaf in structure.leaves]


def freeze(p: T, selection: Callable[[Selection], Selection] | str | Sequence[str] | None = None) -> T:
    """Mark leaves as not trained: gradients skip them, optimisers and weight decay leave them alone.

    The mark is part of the structure, so it survives every transformation, and `bridge.to_module` turns it into
    ``requires_grad=False``. Freezing an alias freezes the leaf that it is tied to.

    Args:
        p: the tree.
        selection: which leaves: path patterns, or a function ``lambda s: s.instances(Linear)`` on ``select(p)``; all
            leaves by default.

    Raises:
        SelectionError: nothing is selected.
        StructureError: a leaf lies in no container, so there is nowhere to keep the mark.
    """
    return _set_frozen(p, selection, True)


def unfreeze(p: T, selection: Callable[[Selection], Selection] | str | Sequence[str] | None = None) -> T:
    """Take the marks of `freeze` off again; arguments and errors as there."""
    return _set_frozen(p, selection, False)


def _set_frozen(p: Any, selection: Callable[[Selection], Selection] | str | Sequence[str] | None, frozen: bool) -> Any:
    name = "freeze" if frozen else "unfreeze"
    _, structure = flatten(p)
    hits = selected_leaves(p, structure, select(p) if selection is None else chosen(name, p, selection))
    hit = [leaf for leaf, is_hit in zip(structure.leaves, hits, strict=True) if is_hit]
    for leaf in hit:
        if not leaf.owner:
            raise StructureError(
                f"{name}: {quoted(leaf.path)} lies in no container, so there is nowhere to keep the mark: put it into "
                f"a container, or choose what to train with pn.tree.partition."
            )
    return _marked(p, {leaf.entries for leaf in hit}, frozen)


def _marked(node: Any, hit: set[Entries], frozen: bool) -> Any:
    if not hit:
        return node
    level = one_level(node)
    if level is None:
        return node
    below: dict[Any, set[Entries]] = {}
    for first, *rest in hit:
        below.setdefault(first, set()).add(tuple(rest))
    children = [
        _marked(child, below.get(entry, set()), frozen)
        for entry, child in zip(level.entries, level.children, strict=True)
    ]
    new = level.rebuild(children)
    if not is_container(new):
        return new
    own = frozenset([_own_leaf(node, entries) for entries in hit]) - {None}
    old = (new._marks or Marks()).frozen
    object.__setattr__(new, "_marks", changed_marks(new._marks, frozen=old | own if frozen else old - own))
    return new


def _own_leaf(node: Any, entries: Entries) -> str | None:
    # The dotted path if the leaf's innermost container is `node` itself.
    for entry in entries[:-1]:
        level = one_level(node)
        assert level is not None
        node = level.children[level.entries.index(entry)]
        if is_container(node):
            return None
    return join(entries)
