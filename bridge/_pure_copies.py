"""Deep copies of modules whose attributes hold functions that refer to the module itself.

A deep copy shares functions, so a lambda, a method replaced by hand, or a hook that refers to a module by a variable
would go on with the original and its tensors. Here such functions are copied with what they refer to.
"""

import copy
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

# What a function writes notes into, for somebody outside to read: it stays the same object, unless a module has it.
_OUTSIDE = (list, dict, set)


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy, in which no function refers to the original.

    Args:
        module: the module.
        memo: what is copied already, by its id, as for `copy.deepcopy`.

    Raises:
        TypeError: a function refers to one of the module's tensors itself.
    """
    tensors = {id(tensor) for tensors in (module.parameters(), module.buffers()) for tensor in tensors}
    held = [value for child in module.modules() for value in child.__dict__.values()]
    notes = {id(value) for value in held if isinstance(value, _OUTSIDE)}
    search = _Search(tensors | {id(child) for child in module.modules()}, notes)
    for value in held:
        search.refers(value)
    for function in search.found:
        if any(id(part) in tensors for part in _parts(function, notes)):
            raise TypeError(
                f"the function {function.__qualname__} refers to a parameter or buffer by a variable, where it can "
                f"have no other value; let it refer to the module"
            )
    made = {id(function): _with_empty_cells(function) for function in search.found}
    memo |= made
    # Kept alive, since the ids above are theirs.
    memo[id(memo)] = [*search.found]
    result = copy.deepcopy(module, memo)
    for function in search.found:
        _fill(made[id(function)], function, memo)
    return result


class _Search:
    """Which functions refer to some modules or tensors, or to their notes, by their variables or defaults."""

    def __init__(self, own: set[int], notes: set[int]) -> None:
        self.own = own
        self.notes = notes
        self.found: list[types.FunctionType] = []
        self.known: dict[int, bool] = {}

    def refers(self, value: Any) -> bool:
        """Whether a value is, or refers to, one of the modules or tensors."""
        if id(value) in self.own:
            return True
        if isinstance(value, (nn.Module, Tensor)) or id(value) in self.known:
            return self.known.get(id(value), False)
        self.known[id(value)] = False
        # All of them, since every function on the way is to be found.
        result = any([id(part) in self.notes or self.refers(part) for part in _parts(value, self.notes)])  # noqa: C419
        self.known[id(value)] = result
        if result and isinstance(value, types.FunctionType):
            self.found.append(value)
        return result


def _parts(value: Any, notes: set[int]) -> Iterable[Any]:
    if isinstance(value, types.FunctionType):
        held = [*_contents(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [part for part in held if id(part) in notes or not isinstance(part, _OUTSIDE)]
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (tuple, list, set)) else ()


def _contents(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            # A variable that has no value yet.
            continue


def _with_empty_cells(function: types.FunctionType) -> types.FunctionType:
    cells = tuple([types.CellType() for _ in function.__closure__ or ()])
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    made.__dict__.update(function.__dict__)
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return made


def _fill(made: types.FunctionType, function: types.FunctionType, memo: dict[int, Any]) -> None:
    search = _Search(set(memo), set())

    def there(value: Any) -> Any:
        # What does not lead to the module is shared, as in every function.
        own = id(value) in memo or (not isinstance(value, _OUTSIDE) and search.refers(value))
        return copy.deepcopy(value, memo) if own else value

    for cell, old in zip(made.__closure__ or (), function.__closure__ or (), strict=True):
        try:
            cell.cell_contents = there(old.cell_contents)
        except ValueError:
            continue
    made.__defaults__ = None if function.__defaults__ is None else tuple(map(there, function.__defaults__))
    if function.__kwdefaults__ is not None:
        made.__kwdefaults__ = {name: there(value) for name, value in function.__kwdefaults__.items()}
