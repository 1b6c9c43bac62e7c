"""Functions of other libraries that are replaced while a module runs purely, in the running thread only.

The replacement is in place for as long as any thread is in `replaced`; in the other threads it calls the original.
"""

import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """A function to replace.

    Attributes:
        owner: name of the module that has it, or of a class in it; left alone while it is not imported.
        name: the function's name there.
        make: makes the replacement of the original, of a classmethod as the function behind it.
        always: whether it also stands where nothing is transformed.
    """

    owner: str
    name: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    always: bool = False


class _Running(threading.local):
    depth = transformed = 0
    paths: Mapping[int, str] = MappingProxyType({})


_REPLACEMENTS: dict[tuple[str, str], Replacement] = {}
_running = _Running()
_lock = threading.Lock()
_threads = 0
_originals: list[tuple[Any, str, Any]] = []


def replacing(replacement: Replacement) -> None:
    """Add a replacement, or put it in the place of an earlier one for the same function."""
    _REPLACEMENTS[replacement.owner, replacement.name] = replacement


def running_paths() -> Mapping[int, str]:
    """The names of the modules that the innermost block of `replaced` is for."""
    return _running.paths


@contextmanager
def replaced(paths: Mapping[int, str], *, transformed: bool) -> Iterator[None]:
    """The block in which the functions are replaced.

    Args:
        paths: names of the running modules, by their ids.
        transformed: whether a transformation is around; otherwise only those are replaced that always are.
    """
    global _threads
    with _lock:
        _threads += 1
        if _threads == 1:
            _install()
    _running.depth += 1
    _running.transformed += transformed
    outer, _running.paths = _running.paths, paths
    try:
        yield
    finally:
        _running.depth -= 1
        _running.transformed -= transformed
        _running.paths = outer
        with _lock:
            _threads -= 1
            if not _threads:
                _uninstall()


def _install() -> None:
    for replacement in _REPLACEMENTS.values():
        owner = _owner(replacement.owner)
        if owner is not None and hasattr(owner, replacement.name):
            # As it stands in the class or module: a classmethod, for example.
            found = vars(owner)[replacement.name]
            _originals.append((owner, replacement.name, found))
            setattr(owner, replacement.name, _chosen(found, replacement))


def _uninstall() -> None:
    while _originals:
        setattr(*_originals.pop())


def _owner(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return sys.modules.get(path) or getattr(sys.modules.get(module), name, None)


def _chosen(found: Any, replacement: Replacement) -> Any:
    original = getattr(found, "__func__", found)
    made = replacement.make(original)

    def call(*args: Any, **kwargs: Any) -> Any:
        here = _running.depth if replacement.always else _running.transformed
        return (made if here else original)(*args, **kwargs)

    # One that is written in C is of another type; torch 2.15 has such.
    return classmethod(call) if isinstance(found, (classmethod, types.ClassMethodDescriptorType)) else call
