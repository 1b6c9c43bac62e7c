"""Watching layers while a function runs: the mechanism behind `capture`, `perturb`, `intervene` and `summary`.

The layers to be watched are marked in a copy of the tree. A marked layer leaves the hot path of its call, so that
layers nobody watches pay nothing, and shows its inputs and its output to the watcher that is active.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from purenn.tree._fields import Watched, changed_marks, is_container
from purenn.tree._replace import replace
from purenn.tree._walk import Entries, join, one_level

Watcher = Callable[[str, Any], Any]


class _Watchers(NamedTuple):
    after: Watcher
    before: Callable[[str, tuple[Any, ...]], None] | None


# The outer ones first. A mark names its watcher by the position here.
_active: ContextVar[tuple[_Watchers, ...]] = ContextVar("purenn_watchers", default=())


@contextmanager
def watching(after: Watcher, before: Callable[[str, tuple[Any, ...]], None] | None = None) -> Iterator[None]:
    """While the block runs, the output of every layer that was marked just before becomes ``after(path, output)``.

    Args:
        after: called with each output. Of an outer watcher that watches the same layer it is called later.
        before: called as ``before(path, inputs)`` when a layer begins.
    """
    token = _active.set((*_active.get(), _Watchers(after, before)))
    try:
        yield
    finally:
        _active.reset(token)


def is_watched() -> bool:
    """Whether a watcher is active."""
    return bool(_active.get())


def begun(marks: Watched, inputs: tuple[Any, ...]) -> None:
    """Tell the watchers of a marked layer that it begins."""
    for watchers, path in _watchers_of(marks):
        if watchers.before is not None:
            watchers.before(path, inputs)


def shown(marks: Watched, output: Any) -> Any:
    """A marked layer's output as its watchers want it."""
    for watchers, path in _watchers_of(marks):
        output = watchers.after(path, output)
    return output


def _watchers_of(marks: Watched) -> list[tuple[_Watchers, str]]:
    active = _active.get()
    return [(active[position], path) for position, path in reversed(marks) if position < len(active)]


def watched(tree: Any, places: set[Entries]) -> Any:
    """A copy of a tree in which the containers at some places are marked for the next `watching`."""
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
        before = () if new._marks is None else new._marks.watched or ()
        marks = (*before, (len(_active.get()), join(here)))
        object.__setattr__(new, "_marks", changed_marks(new._marks, watched=marks))
    return new


def unwatched(tree: Any) -> Any:
    """A tree without the marks of the last `watched`; the same object if it has none."""
    level = one_level(tree)
    if level is None:
        return tree
    children = [unwatched(child) for child in level.children]
    if any(new is not old for new, old in zip(children, level.children, strict=True)):
        tree = level.rebuild(children)
    marks = tree._marks if is_container(tree) else None
    if marks is None or marks.watched is None:
        return tree
    outer = tuple([mark for mark in marks.watched if mark[0] < len(_active.get())])
    plain = replace(tree)
    object.__setattr__(plain, "_marks", changed_marks(marks, watched=outer or None))
    return plain
