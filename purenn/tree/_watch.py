"""Watching layers while a function runs: the mechanism behind `capture`, `perturb`, `intervene` and `summary`.

The layers to be watched are marked in a copy of the tree. A marked layer leaves the hot path of its call, so that
layers nobody watches pay nothing, and shows its inputs and its output to the watcher that is active.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from purenn.tree._fields import changed_marks, is_container
from purenn.tree._replace import replace
from purenn.tree._walk import Entries, join, one_level

Watcher = Callable[[str, Any], Any]


class _Watchers(NamedTuple):
    after: Watcher
    before: Callable[[str, tuple[Any, ...]], None] | None


_watcher: ContextVar[_Watchers | None] = ContextVar("purenn_watcher", default=None)


@contextmanager
def watching(after: Watcher, before: Callable[[str, tuple[Any, ...]], None] | None = None) -> Iterator[None]:
    """While the block runs, every marked layer's output becomes ``after(path, output)``.

    Args:
        after: called with each output.
        before: called as ``before(path, inputs)`` when a layer begins.
    """
    token = _watcher.set(_Watchers(after, before))
    try:
        yield
    finally:
        _watcher.reset(token)


def is_watched() -> bool:
    """Whether a watcher is active."""
    return _watcher.get() is not None


def begun(path: str, inputs: tuple[Any, ...]) -> None:
    """Tell the active watcher that a marked layer begins."""
    watchers = _watcher.get()
    if watchers is not None and watchers.before is not None:
        watchers.before(path, inputs)


def shown(path: str, output: Any) -> Any:
    """A marked layer's output as the active watcher wants it."""
    watchers = _watcher.get()
    return output if watchers is None else watchers.after(path, output)


def watched(tree: Any, places: set[Entries]) -> Any:
    """A copy of a tree in which the containers at some places are marked."""
    return _marked(tree, (), places)


def _marked(node: Any, here: Entries, places: set[Entries]) -> Any:
    if not any(place[: len(here)] == here for place in places):
        return node
    level = one_level(node)
    if level is None:
        return node
    pairs = zip(level.entries, level.children, strict=True)
    new = level.rebuild([_marked(child, (*here, entry), places) for entry, child in pairs])
    if here in places:
        object.__setattr__(new, "_marks", changed_marks(new._marks, watched=join(here)))
    return new


def unwatched(tree: Any) -> Any:
    """A tree without the marks of `watched`; the same object if it has none."""
    level = one_level(tree)
    if level is None:
        return tree
    children = [unwatched(child) for child in level.children]
    if any(new is not old for new, old in zip(children, level.children, strict=True)):
        tree = level.rebuild(children)
    marks = tree._marks if is_container(tree) else None
    if marks is None or marks.watched is None:
        return tree
    plain = replace(tree)
    object.__setattr__(plain, "_marks", changed_marks(marks, watched=None))
    return plain
