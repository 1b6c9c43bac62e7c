"""Tensors that functions hold: finding them, and putting others in their places."""

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import optree
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._functorch import eager_transforms

from purenn.errors import GradientError


def rebuilt(item: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    """A captured value with other tensors in it.

    They are found through variables of functions, partials, bound methods, attrs objects and trees. What holds none
    that change stays the same object.

    Args:
        item: the value, a function usually.
        change: the tensor that takes a tensor's place.
        done: what has been rebuilt so far, by its id.
    """
    if isinstance(item, Tensor):
        return change(item)
    if id(item) in done:
        return done[id(item)]
    if isinstance(item, types.FunctionType):
        return _free_pull(item) if item.__module__ == _PULLS else _rebuilt_function(item, change, done)
    if isinstance(item, types.MethodType):
        owner = rebuilt(item.__self__, change, done)
        return item if owner is item.__self__ else types.MethodType(item.__func__, owner)
    if isinstance(item, functools.partial):
        parts = item.func, item.args, item.keywords
        fn, args, keywords = new = tuple(rebuilt(part, change, done) for part in parts)
        return (
            item if all(a is b for a, b in zip(parts, new, strict=True)) else functools.partial(fn, *args, **keywords)
        )
    if isinstance(item, type):
        return item
    if optree.tree_is_leaf(item):
        if "__wrapped__" in getattr(item, "__dict__", ()):
            return _rebuilt_wrapper(item, change, done)
        return _rebuilt_object(item, change, done) if attrs.has(type(item)) else item
    leaves, spec = optree.tree_flatten(item)
    new = [rebuilt(leaf, change, done) for leaf in leaves]
    return item if all(a is b for a, b in zip(leaves, new, strict=True)) else optree.tree_unflatten(spec, new)


# Where torch defines the pulls that torch.func.vjp returns.
_PULLS = eager_transforms.__name__


def _free_pull(pull: types.FunctionType) -> types.FunctionType:
    # Its graph holds the tensors that it was made with: no others can take their places.
    held: Any = [cell.cell_contents for cell in pull.__closure__ or ()]
    inner = [get_unwrapped(leaf) for leaf in optree.tree_leaves(held) if _is_wrapped(leaf)]
    if any(map(_is_wrapped, inner)):
        raise GradientError(
            "vjp: its pull is called in the body of a compiled loop or branch, or of a recomputed step, and vjp itself "
            "outside of it, within another transformation: no derivative goes that way. Call vjp and its pull both in "
            "the body, or both outside."
        )
    return pull


def _is_wrapped(item: Any) -> bool:
    return isinstance(item, Tensor) and is_functorch_wrapped_tensor(item)


def _rebuilt_wrapper(item: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    # An object in the place of a function: jitted, or with a derivative rule.
    new = copy.copy(item)
    if new is item:
        return item
    done[id(item)] = new  # for rules that use their function
    if not _attributes_change(item, new, [name for name, part in vars(item).items() if callable(part)], change, done):
        done[id(item)] = new = item
    return new


def _rebuilt_object(item: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    before = {field.name: getattr(item, field.name) for field in attrs.fields(type(item)) if field.init}
    after = {name: rebuilt(value, change, done) for name, value in before.items()}
    return item if all(after[name] is value for name, value in before.items()) else attrs.evolve(item, **after)


def _rebuilt_function(fn: types.FunctionType, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    cells = tuple([types.CellType() for _ in fn.__closure__ or ()])
    new = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, None, cells or None)
    new.__dict__.update(fn.__dict__)
    done[id(fn)] = new  # for functions that refer to themselves
    changed = False
    for cell, old in zip(cells, fn.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable that is not yet assigned
            cell.cell_contents = rebuilt(old.cell_contents, change, done)
            changed = changed or cell.cell_contents is not old.cell_contents
    if not _attributes_change(fn, new, ("__defaults__", "__kwdefaults__"), change, done) and not changed:
        done[id(fn)] = new = fn
    return new


def _attributes_change(
    item: Any, new: Any, names: Sequence[str], change: Callable[[Tensor], Tensor], done: dict[int, Any]
) -> bool:
    # Gives `new` the rebuilt attributes of an item.
    for name in names:
        setattr(new, name, rebuilt(getattr(item, name), change, done))
    return any(getattr(new, name) is not getattr(item, name) for name in names)
