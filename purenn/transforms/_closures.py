"""What a function closes over: whether a tensor that it reaches requires grad."""

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import optree
import torch
from torch import Tensor, nn

from purenn.transforms._leaves import Problem


class Closures:
    """What is known of the tensors that one function closes over."""

    def __init__(self) -> None:
        self._known: dict[Any, bool] = {}

    def signature(self, problem: Problem) -> Any:
        """What must be unchanged for the answer of an earlier search to hold; None if that cannot be told."""
        found: list[Any] = []
        if not _note(problem.fn, found):
            return None
        return tuple([argument.structure.spec for argument in problem.arguments]), tuple(found)

    def known(self, signature: Any) -> bool | None:
        """Whether the function is free of foreign tensors that require grad; None if not yet searched."""
        return None if signature is None else self._known.get(signature)

    def learn(self, signature: Any, free: bool) -> None:
        """Remember the result of a search."""
        if signature is not None:
            if len(self._known) >= 64:
                self._known.clear()
            self._known[signature] = free


_OURS = frozenset({"purenn", "bridge"})
_LIBRARIES = _OURS | frozenset({"torch", "optree", "attrs", "functools"})
_WITHOUT_TENSORS = (
    *(type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType),
    *(torch.dtype, torch.device, torch.Size, Closures),
)


def _note(item: Any, found: list[Any]) -> bool:
    """Note which of the tensors that are reached from a captured value require grad.

    Returns:
        Whether all of them are known. An object of a class that is not can hold tensors where nobody sees them.
    """
    todo, seen = [item], set[int]()
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            found.append((id(item), item.requires_grad))
            continue
        parts = _parts_by(type(item))
        if parts is None or id(item) in seen:
            continue
        seen.add(id(item))
        inner = parts(item)
        if inner is None:
            return False
        todo += inner
    return True


@functools.lru_cache(maxsize=512)
def _parts_by(kind: type) -> Callable[[Any], Iterable[Any] | None] | None:
    # What gives the parts of values of one class; None if they have no tensors.
    if issubclass(kind, _WITHOUT_TENSORS):
        return None
    if issubclass(kind, types.FunctionType):
        return _captured_by
    if issubclass(kind, types.MethodType):
        return lambda method: (method.__self__, method.__func__)
    if issubclass(kind, functools.partial):
        return lambda partial: (partial.func, *partial.args, *partial.keywords.values())
    if issubclass(kind, nn.Module):
        return lambda module: [*module.parameters(), *module.buffers()]
    return _parts_of_object


def _parts_of_object(item: Any) -> Iterable[Any] | None:
    if not optree.tree_is_leaf(item):
        return optree.tree_leaves(item)
    if attrs.has(type(item)):
        return _fields_of(item)
    return [item.__wrapped__] if hasattr(item, "__wrapped__") else None


def _captured_by(fn: types.FunctionType) -> list[Any]:
    known = fn.__dict__.get("_purenn_captured")
    if known is not None and known[0] == id(fn):  # functools.wraps copies it
        return known[1]
    library = _library_of(fn)
    if library in _OURS:
        return _learned(fn)
    captured, _ = _contents(fn)
    # What the libraries name in their own modules are their own tools.
    if library not in _LIBRARIES:
        space = fn.__globals__
        captured += [space[name] for name in _global_names(fn.__code__) if name in space]
    return captured


def _library_of(fn: types.FunctionType) -> str:
    return fn.__globals__.get("__name__", "").partition(".")[0]


def _fields_of(item: Any) -> list[Any]:
    return [getattr(item, field.name) for field in attrs.fields(type(item))]


def _stays(item: Any) -> bool:
    # Whether what it leads to directly stays the same: of tuples, and of functions and frozen objects of our own.
    if isinstance(item, types.FunctionType):
        return _library_of(item) in _OURS
    kind = type(item)
    if kind.__module__.partition(".")[0] not in _OURS:
        return kind is tuple
    return isinstance(item, tuple) or kind.__setattr__ is _refuses_to_be_written


_refuses_to_be_written = attrs.frozen(type("_Frozen", (), {})).__setattr__


def _contents(fn: types.FunctionType) -> tuple[list[Any], bool]:
    # What a function closes over, and whether all of its variables are assigned.
    captured = []
    for cell in fn.__closure__ or ():
        try:  # in a hot path, where contextlib.suppress shows
            captured.append(cell.cell_contents)
        except ValueError:
            continue
    return captured, len(captured) == len(fn.__closure__ or ())


def _learned(fn: types.FunctionType) -> list[Any]:
    # What it leads to that may lead to something else later.
    captured: dict[int, Any] = {}
    todo: list[Any] = [fn]
    seen, complete = {id(fn)}, True
    for item in todo:
        if isinstance(item, types.FunctionType):
            contents, assigned = _contents(item)
            complete = complete and assigned
        else:
            contents = item if isinstance(item, tuple) else _fields_of(item)
        for inner in contents:
            if not _stays(inner):
                captured[id(inner)] = inner
            elif id(inner) not in seen:
                seen.add(id(inner))
                todo.append(inner)
    found = [item for item in captured.values() if not isinstance(item, _WITHOUT_TENSORS)]
    if complete:
        fn.__dict__["_purenn_captured"] = id(fn), found
    return found


@functools.lru_cache(maxsize=512)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *(name for c in inner for name in _global_names(c)))))
