"""Ties as data: one leaf, named aliases.

A model that uses one tensor in two places has, after `tie`, one leaf and an `Alias` in the other place. Gradients,
optimisers, counts and files then see the tensor once. Applying the model puts the tensor into all its places.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from purenn.errors import StructureError
from purenn.tree._checks import a_or_an
from purenn.tree._fields import Spec, changed_marks, is_container
from purenn.tree._holes import Alias, Placeholder
from purenn.tree._replace import replace
from purenn.tree._walk import Entries, join, node_at, one_level, parse, quoted, rebuild_at, short, walk

T = TypeVar("T")


def tie(p: T, aliases: Mapping[str, str] | None = None) -> T:
    """Make places of a container share one leaf.

    Args:
        p: a container. Applying it, or anything that contains it, resolves the ties.
        aliases: path of the alias -> path of the leaf that it shall share, both relative to `p`. A path that is an
            alias itself stands for its leaf. By default, all places that hold the very same tensor object are tied to
            the first of them; buffers only to buffers.

    Returns:
        The container with `Alias` nodes in the tied places. Their own tensors are dropped.

    Raises:
        StructureError: `p` is no container, the two places differ in shape, dtype or kind, or are the same, or are no
            tensors.
        PathError: a path names nothing.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, Sequential
        >>> k = pn.random.key(0)
        >>> p = Sequential.of(Linear.init(k, 4, 4), Linear.init(k, 4, 4))
        >>> pn.tree.count(pn.tree.tie(p, {"layers.1.weight": "layers.0.weight"}))
        24
    """
    if not is_container(p):
        raise StructureError(f"tie takes a container, got {type(p).__name__}: put the parts into a container first.")
    given = _shared(p) if aliases is None else dict(aliases)
    if not given:
        return p
    known = aliases_of(p)
    ties = {**known, **given}
    kinds = {leaf.path: leaf.kind for leaf, _ in walk(p)}
    for alias in given:
        _require_alike(p, _end(known, alias), _end(ties, given[alias]), kinds)
    # Aliases are relative to the container that resolves them. A tied part of `p` that is given an alias to a leaf
    # outside of it leaves that to `p`, for its own aliases too.
    given_up = {root for alias in given for root in _tied_roots(p, parse(p, alias))}
    edits = {}
    for alias in ties:
        entries = parse(p, alias)
        roots = _tied_roots(p, entries)
        if alias in given or not roots or roots[-1] in given_up:
            edits[entries] = Alias(_end(ties, alias))
    tied = rebuild_at(p, edits)
    for root in given_up:
        tied = rebuild_at(tied, {root: _mark(node_at(tied, root), False)})
    return _mark(tied, True)


def _end(ties: Mapping[str, str], path: str) -> str:
    # The leaf at which a chain of aliases ends.
    seen = {path}
    while path in ties:
        path = ties[path]
        if path in seen:
            raise StructureError(f"{quoted(path)} cannot be tied to itself.")
        seen.add(path)
    return path


def _require_alike(p: Any, alias: str, leaf: str, kinds: Mapping[str, str]) -> None:
    here, there = node_at(p, parse(p, alias)), node_at(p, parse(p, leaf))
    texts = [short(x) if isinstance(x, Tensor) or x is None else a_or_an(x) for x in (here, there)]
    what = f"{quoted(alias)} ({texts[0]}) cannot be tied to {quoted(leaf)} ({texts[1]})"
    if not (isinstance(here, Tensor) and isinstance(there, Tensor)):
        raise StructureError(f"{what}: both must be tensors.")
    if (here.shape, here.dtype) != (there.shape, there.dtype):
        raise StructureError(f"{what}: shape and dtype must be equal.")
    for entry in (*parse(p, alias), *parse(p, leaf)):
        if isinstance(entry, str) and "." in entry:
            raise StructureError(f"{what}: the dict key '{entry}' on the way has a dot, which ties cannot follow.")
    if kinds[alias] != kinds[leaf]:
        raise StructureError(f"{what}: one is a {kinds[alias]}, the other a {kinds[leaf]}.")


def _tied_roots(p: Any, entries: Entries) -> list[Entries]:
    # The tied containers between `p` and a place below it, from the outside in.
    return [entries[:n] for n in range(1, len(entries)) if _is_tied(node_at(p, entries[:n]))]


def _is_tied(node: Any) -> bool:
    return is_container(node) and node._marks is not None and node._marks.tied


def untie(p: T) -> T:
    """Put the shared tensors into all their places: the same tree without `Alias` nodes.

    Gradients taken with respect to the result see every place as a leaf of its own.
    """
    return _with_children(resolved(p), untie)


def resolved(p: T) -> T:
    """A container without its own aliases; tied containers below it keep theirs."""
    return _mark(_resolve(p, p), False) if _is_tied(p) else p


def aliases_of(p: Any) -> dict[str, str]:
    """All ties of a tree: path of the alias -> path of its leaf, from the top of the tree."""
    found: dict[str, str] = {}

    def visit(node: Any, entries: Entries, root: Entries) -> None:
        if isinstance(node, Alias):
            found[join(entries)] = ".".join((*map(str, root), node.path))
            return
        level = one_level(node)
        if level is None:
            return
        if _is_tied(node):
            root = entries
        for entry, child in zip(level.entries, level.children, strict=True):
            visit(child, (*entries, entry), root)

    visit(p, (), ())
    return found


def tie_like(whole: T, pattern: Any) -> T:
    """`whole` with aliases in the places where `pattern`, a tied container, has them."""
    return _mark(rebuild_at(whole, dict(_own_aliases(pattern, ()))), True)


def _own_aliases(node: Any, entries: Entries) -> list[tuple[Entries, Alias]]:
    if isinstance(node, Alias):
        return [(entries, node)]
    if entries and _is_tied(node):
        return []
    level = one_level(node)
    if level is None:
        return []
    pairs = zip(level.entries, level.children, strict=True)
    return [found for entry, child in pairs for found in _own_aliases(child, (*entries, entry))]


def _resolve(node: Any, root: Any) -> Any:
    if isinstance(node, Alias):
        return _follow(root, node.path)
    if node is not root and _is_tied(node):
        return node
    return _with_children(node, lambda child: _resolve(child, root))


def _with_children(node: Any, f: Callable[[Any], Any]) -> Any:
    # The node with `f(child)` for every child. Written without optree for the usual nodes, so that a tied model can be
    # applied inside a compiled function.
    if node is None or isinstance(node, (Tensor, Placeholder, bool, int, float, complex)):
        return node
    if is_container(node):
        spec: Spec = node.__container_spec__
        return replace(node, **{name: f(getattr(node, name)) for name in spec.dynamic})
    if type(node) in (tuple, list):
        return type(node)([f(child) for child in node])
    if type(node) is dict:
        return {key: f(child) for key, child in node.items()}
    level = one_level(node)
    return node if level is None else level.rebuild([f(child) for child in level.children])


def _follow(root: Any, path: str) -> Any:
    node = root
    for part in path.split("."):
        if is_container(node):
            node = getattr(node, part)
        elif type(node) in (tuple, list):
            node = node[int(part)]
        elif type(node) is dict:
            node = node[part] if part in node else node[int(part)]
        else:
            node = node_at(node, parse(node, part))
    return node


def _mark(p: Any, tied: bool) -> Any:
    new = replace(p)
    object.__setattr__(new, "_marks", changed_marks(p._marks, tied=tied))
    return new


def _shared(p: Any) -> dict[str, str]:
    first: dict[tuple[int, str], str] = {}
    shared = {}
    for leaf, value in walk(p):
        if isinstance(value, Tensor):
            path = first.setdefault((id(value), leaf.kind), leaf.path)
            if path != leaf.path:
                shared[leaf.path] = path
    return shared
