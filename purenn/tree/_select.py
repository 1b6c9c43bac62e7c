"""Surgery: selecting nodes of a tree by class, path or predicate, and reading or changing them."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from types import UnionType
from typing import Any, Generic, TypeVar

import attrs
import torch

from purenn.errors import ArgumentError, SelectionError
from purenn.tree._checks import a_or_an, stored
from purenn.tree._walk import Entries, join, node_at, one_level, quoted, rebuild_at, short

T = TypeVar("T")


# Not frozen: dynamo cannot trace the constructor of a frozen class.
@attrs.define(eq=False, repr=False)
class Selection(Generic[T]):
    """Some nodes of a tree: leaves, containers, tuples. Made by `select`, narrowed by its methods.

    Attributes:
        tree: the whole tree.
        entries: where the selected nodes are, in the tree's order.
        asked: what was asked for, in words, for error messages.
        whole: whether this is the fresh selection, whose only node is the whole tree.
    """

    tree: T
    entries: tuple[Entries, ...]
    asked: str
    whole: bool = False

    def __repr__(self) -> str:
        return f"<{len(self.entries)} nodes of {type(self.tree).__name__}: {', '.join(self.names)}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The dotted paths of the selected nodes."""
        return tuple(join(entries) for entries in self.entries)

    def instances(self, kind: type | tuple[type, ...]) -> "Selection[T]":
        """The nodes at or below the selected ones that are instances of a class (``torch.Tensor`` for all leaves).

        Raises:
            ArgumentError: `kind` is no class.
        """
        kinds = kind if isinstance(kind, tuple) else (kind,)
        for one in kinds:
            if not isinstance(one, (type, UnionType)):
                raise ArgumentError(f"instances takes a class, or a tuple of classes, got {short(one)}.")
        found = [place for place, node in self._below() if isinstance(node, kinds)]
        return self._narrow(found, f"instances of {' or '.join(getattr(k, '__name__', str(k)) for k in kinds)}")

    def paths(self, patterns: str | Sequence[str]) -> "Selection[T]":
        """The nodes below the selected ones whose relative dotted path matches a pattern.

        ``*`` stands for any text within one part (for one part, if alone), ``**`` for any number of whole parts; a
        trailing ``**`` means all leaves below. So ``encoder.*`` selects the children of ``encoder``, ``**.weight``
        every weight.

        Raises:
            ArgumentError: a pattern is no string.
            SelectionError: two patterns select the same node.
        """
        several = isinstance(patterns, Iterable) and not isinstance(patterns, str)
        wanted: list[Any] = list(patterns) if several else [patterns]
        for pattern in wanted:
            if not isinstance(pattern, str):
                raise ArgumentError(
                    f"paths takes a pattern such as 'encoder.*', or a list of them, got {short(pattern)}."
                )
        by: dict[Entries, int] = {}
        for top in self.entries:
            for place, node in _nodes(node_at(self.tree, top), top):
                relative, leaf = join(place[len(top) :]), one_level(node) is None
                for number, pattern in enumerate(wanted):
                    if (_leaves_only(pattern) and not leaf) or not _matches(pattern, relative):
                        continue
                    if by.setdefault(place, number) != number:
                        raise SelectionError(
                            f"{quoted(join(place))} is selected twice: by '{wanted[by[place]]}' and by "
                            f"'{wanted[number]}'. Make the patterns disjoint."
                        )
        return self._narrow(list(by), f"paths {', '.join(repr(pattern) for pattern in wanted)}")

    def where(self, predicate: Callable[[Any], bool]) -> "Selection[T]":
        """The selected nodes for which a predicate holds; on a fresh selection the candidates are all leaves."""
        if self.whole:
            found = [place for place, node in self._below() if one_level(node) is None and predicate(node)]
        else:
            found = [place for place in self.entries if predicate(node_at(self.tree, place))]
        return self._narrow(found, f"where {getattr(predicate, '__name__', 'predicate')}")

    def get(self) -> tuple[Any, ...]:
        """The selected nodes.

        Raises:
            SelectionError: the selection is empty.
        """
        self.require("get")
        return tuple(node_at(self.tree, place) for place in self.entries)

    def set(self, value: Any) -> T:
        """The tree with `value` in the place of every selected node.

        Raises:
            ContainerError: a value that no field can hold, such as a function or a module.
            SelectionError: the selection is empty, or one selected node lies within another.
        """
        return self.apply(lambda _: value, _verb="set")

    def apply(self, f: Callable[[Any], Any], *, _verb: str = "apply") -> T:
        """The tree with ``f(node)`` in the place of every selected node.

        Raises:
            ContainerError: a value that no field can hold, such as a function or a module.
            SelectionError: the selection is empty, or one selected node lies within another.
        """
        self.require(_verb)
        chosen = set(self.entries)
        for place in self.entries:
            for n in range(len(place)):
                if place[:n] in chosen:
                    outer = f"'{join(place[:n])}'" if n else "the whole tree"
                    raise SelectionError(
                        f"{_verb}: the selection ({self.asked}) hits '{join(place)}' twice, once within {outer}: "
                        f"select the outer or the inner nodes only."
                    )
        values = {place: f(node_at(self.tree, place)) for place in self.entries}
        return rebuild_at(
            self.tree,
            {place: stored(f"{_verb}: {join(place) or 'the tree'}", value) for place, value in values.items()},
        )

    def require(self, verb: str) -> "Selection[T]":
        """The selection itself, unless it is empty.

        Raises:
            SelectionError: the selection is empty.
        """
        if not self.entries:
            there = [join(place) for place, _ in _nodes(self.tree, ()) if place]
            shown = ", ".join(there[:8]) + (" and others" if len(there) > 8 else "")
            raise SelectionError(
                f"{verb}: the selection ({self.asked}) is empty in this {type(self.tree).__name__}; its nodes are: "
                f"{shown or 'none below the top'}."
            )
        return self

    def _below(self) -> list[tuple[Entries, Any]]:
        return [pair for top in self.entries for pair in _nodes(node_at(self.tree, top), top)]

    def _narrow(self, found: list[Entries], asked: str) -> "Selection[T]":
        unique = tuple(dict.fromkeys(found))
        return Selection(self.tree, unique, asked if self.whole else f"{self.asked}, then {asked}")


def select(tree: T) -> Selection[T]:
    """Start a selection of nodes of a tree.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, Sequential
        >>> k1, k2 = pn.random.split(pn.random.key(0))
        >>> p = Sequential.of(Linear.init(k1, 4, 3), Linear.init(k2, 3, 2))
        >>> pn.tree.select(p).paths("**.bias").names
        ('layers.0.bias', 'layers.1.bias')
        >>> p = pn.tree.select(p).instances(Linear).paths("bias").apply(torch.zeros_like)
    """
    return Selection(tree, ((),), "the whole tree", True)


def chosen(name: str, tree: T, selection: Callable[[Selection[T]], Selection[T]] | str | Sequence[str]) -> Selection[T]:
    """What a function `name` is asked to work on: path patterns, or a function of ``select(tree)``.

    Raises:
        ArgumentError: the function returns no selection.
        SelectionError: nothing is selected.
    """
    start = select(tree)
    found = selection(start) if callable(selection) else start.paths(selection)
    if not isinstance(found, Selection):
        raise ArgumentError(
            f"{name}: the function that selects must return a selection, as lambda s: s.instances(Linear), got "
            f"{a_or_an(found)}."
        )
    return found.require(name)


def _nodes(node: Any, entries: Entries) -> list[tuple[Entries, Any]]:
    level = one_level(node)
    found = [(entries, node)]
    if level is not None:
        for entry, child in zip(level.entries, level.children, strict=True):
            if child is not None:
                found += _nodes(child, (*entries, entry))
    return found


# Dynamo need not look into this, and not every version of it can trace regular expressions.
@torch.compiler.assume_constant_result
def _matches(pattern: str, path: str) -> bool:
    return _compiled(pattern).fullmatch(path) is not None


@functools.lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = pattern.split(".")
    written = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            written += ".*" if last else "(?:.*\\.)?"
        else:
            text = "[^.]+" if part == "*" else re.escape(part).replace(r"\*", "[^.]*")
            written += text + ("" if last else "\\.")
    return re.compile(written, re.DOTALL)


def _leaves_only(pattern: str) -> bool:
    return pattern == "**" or pattern.endswith(".**")
