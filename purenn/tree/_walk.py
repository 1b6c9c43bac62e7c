"""Walking a tree: every leaf with its dotted path, its kind and the container that owns it.

A leaf's path is made of field names, dict keys and positions: ``layers.0.weight``. It equals the ``state_dict`` key
of the module that `bridge.to_module` makes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from purenn.errors import PathError
from purenn.tree._fields import BUFFER, PARAMETER, is_container, spec_of

Entries = tuple[Any, ...]


class Level(NamedTuple):
    """One node opened by one level."""

    entries: tuple[Any, ...]
    children: tuple[Any, ...]
    rebuild: Callable[[Any], Any]


class Leaf(NamedTuple):
    """What the structure says about one leaf.

    Attributes:
        path: the dotted path; empty for a tree that is itself a leaf.
        entries: the path in parts: field names, dict keys, positions.
        kind: "parameter" or "buffer".
        frozen: whether `freeze` has marked it.
        owner: the name of the class of the innermost container that holds it, empty if none does.
    """

    path: str
    entries: Entries
    kind: str
    frozen: bool
    owner: str


def one_level(node: Any) -> Level | None:
    """The children of a node, or None if it is a leaf. None and `HOLE` are nodes without children."""
    if isinstance(node, Tensor):
        return None
    if optree.tree_is_leaf(node):
        return None
    if is_dynamo_compiling() and type(node) is dict:  # of which it cannot take what optree notes
        keys = tuple(sorted(node))
        return Level(keys, tuple([node[key] for key in keys]), lambda children: dict(zip(keys, children, strict=True)))
    flat = optree.tree_flatten_one_level(node)
    return Level(
        tuple(flat.entries), tuple(flat.children), lambda children: flat.unflatten_func(flat.metadata, tuple(children))
    )


def path_part(entry: Any) -> str:
    """One step of a path as text.

    Raises:
        PathError: a dict key that would make paths ambiguous.
    """
    if isinstance(entry, int) and not isinstance(entry, bool):
        return str(entry)
    # Dots within a key are as in a module's state_dict; whether paths are unique is seen when they are all there.
    if isinstance(entry, str) and all(entry.split(".")):
        return entry
    raise PathError(
        f"the dict key {entry!r} cannot be a part of a path: use integers or strings, with something on either side of "
        f"each dot, so that paths are unique and equal state_dict keys."
    )


def join(entries: Entries) -> str:
    """The dotted path of some entries."""
    return ".".join(path_part(entry) for entry in entries)


def quoted(path: str) -> str:
    """A path as errors name it."""
    return f"'{path}'" if path else "the tree itself"


def walk(tree: Any) -> Iterator[tuple[Leaf, Any]]:
    """Every leaf of a tree, in optree's order, with what the structure says about it."""
    return _walk(tree, (), PARAMETER, "", frozenset(), ())


def _carried(module: Any) -> Any:
    # A module that carries a container has the kinds and marks of that.
    return module.tree() if "container_class" in module.__dict__ else module


def _walk(
    node: Any, entries: Entries, kind: str, owner: str, frozen: frozenset[str], local: Entries
) -> Iterator[tuple[Leaf, Any]]:
    if isinstance(node, nn.Module):
        node = _carried(node)
    level = one_level(node)
    if level is None:
        yield Leaf(join(entries), entries, kind, bool(frozen) and join(local) in frozen, owner), node
        return
    spec = spec_of(node) if is_container(node) else None
    if spec is not None:
        marks = node._marks
        owner, frozen, local = type(node).__name__, frozenset() if marks is None else marks.frozen, ()
    for entry, child in zip(level.entries, level.children, strict=True):
        below = BUFFER if kind == BUFFER or (spec is not None and spec.kinds[entry] == BUFFER) else kind
        yield from _walk(child, (*entries, entry), below, owner, frozen, (*local, entry))


def unflatten(spec: optree.PyTreeSpec, leaves: Iterable[Any]) -> Any:
    """The tree of an optree structure with some leaves: optree's function, typed for trees of any class."""
    return optree.tree_unflatten(spec, leaves)


def same_structure(one: Any, other: Any) -> bool:
    """Whether two optree structures are equal."""
    if not is_dynamo_compiling():
        return one == other
    # The class that takes their place in traced code compares functions too, which torch 2.11's dynamo cannot do.
    if one.type is not other.type or one._metadata != other._metadata or one.entries() != other.entries():
        return False
    return all(same_structure(a, b) for a, b in zip(one.children(), other.children(), strict=True))


def fits(one: Any, other: Any) -> bool:
    """Whether two optree structures are equal if a module that carries a container counts as that container."""
    return same_structure(one, other) or same_structure(_without_modules(one), _without_modules(other))


def _without_modules(spec: optree.PyTreeSpec) -> optree.PyTreeSpec:
    # Modules that are taken apart are put together as their containers.
    return optree.tree_structure(unflatten(spec, [0] * spec.num_leaves))


class Structure(NamedTuple):
    """What is the same for all trees of one structure; made once, then looked up."""

    spec: optree.PyTreeSpec
    leaves: tuple[Leaf, ...]
    #: The positions of the leaves that are parameters and not frozen.
    candidates: tuple[int, ...]

    def rebuild(self, values: Iterable[Any]) -> Any:
        """The tree of this structure with some values for its leaves."""
        return unflatten(self.spec, values)

    @property
    def paths(self) -> list[str]:
        """The dotted paths of all leaves."""
        return [leaf.path for leaf in self.leaves]


_STRUCTURES: dict[optree.PyTreeSpec, Structure] = {}
_MOST_STRUCTURES = 1024


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of a tree and its `Structure`.

    Raises:
        PathError: two leaves would have the same path.
    """
    leaves, spec = optree.tree_flatten(tree)
    if is_dynamo_compiling():  # which cannot look a structure up
        return leaves, _structure(spec, tree)
    known = _STRUCTURES.get(spec)
    if known is None:
        known = _structure(spec, tree)
        if len(_STRUCTURES) >= _MOST_STRUCTURES:
            _STRUCTURES.clear()
        _STRUCTURES[spec] = known
    return leaves, known


def _structure(spec: optree.PyTreeSpec, tree: Any) -> Structure:
    described = tuple([leaf for leaf, _ in walk(tree)])
    seen: set[str] = set()
    for leaf in described:
        if leaf.path in seen:
            raise PathError(f"two leaves have the path '{leaf.path}': use dict keys that differ as text.")
        seen.add(leaf.path)
    candidates = tuple([n for n, leaf in enumerate(described) if leaf.kind == PARAMETER and not leaf.frozen])
    return Structure(spec, described, candidates)


def is_trainable(leaf: Leaf, value: Any) -> bool:
    """Whether gradients are taken with respect to a leaf: a floating or complex parameter that is not frozen."""
    return (
        leaf.kind == PARAMETER
        and not leaf.frozen
        and isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
    )


def rebuild_at(tree: Any, edits: dict[Entries, Any]) -> Any:
    """A copy of a tree with the nodes at some entries replaced; all other nodes are shared."""
    if () in edits:
        return edits[()]
    level = one_level(tree)
    if level is None or not edits:
        return tree
    below: dict[Any, dict[Entries, Any]] = {}
    for (first, *rest), value in edits.items():
        below.setdefault(first, {})[tuple(rest)] = value
    children = [
        rebuild_at(child, below[entry]) if entry in below else child
        for entry, child in zip(level.entries, level.children, strict=True)
    ]
    return level.rebuild(children)


def node_at(tree: Any, entries: Entries) -> Any:
    """The node at some entries, which must be there."""
    for entry in entries:
        level = one_level(tree)
        assert level is not None
        tree = level.children[level.entries.index(entry)]
    return tree


def parse(tree: Any, path: str) -> Entries:
    """The entries of a dotted path in a tree.

    Raises:
        PathError: the path names nothing; the error lists what is there.
    """
    found = _find(tree, path)
    if found is not None:
        return found
    entries: Entries = ()
    node = tree
    for part in path.split("."):
        level = one_level(node)
        parts = [] if level is None else [path_part(entry) for entry in level.entries]
        if level is None or part not in parts:
            there = ", ".join(f"'{p}'" for p in parts) or ("nothing, it is a leaf" if level is None else "nothing")
            where = f"'{join(entries)}'" if entries else "the top of the tree"
            raise PathError(f"the path '{path}' names nothing: below {where} there is {there}, but no '{part}'.")
        position = parts.index(part)
        entries, node = (*entries, level.entries[position]), level.children[position]
    raise PathError(f"the path '{path}' names nothing.")


def _find(node: Any, path: str) -> Entries | None:
    if not path:
        return ()
    level = one_level(node)
    for entry, child in () if level is None else zip(level.entries, level.children, strict=True):
        part = path_part(entry)
        if path == part:
            return (entry,)
        if path.startswith(f"{part}."):
            below = _find(child, path[len(part) + 1 :])
            if below is not None:
                return (entry, *below)
    return None


def short(value: Any) -> str:
    """A tensor as ``f32[10,784]``, anything else by its repr."""
    if isinstance(value, Tensor):
        return f"{_DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{','.join(map(str, value.shape))}]"
    return repr(value)


_DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.complex64: "c64",
    torch.complex128: "c128",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
