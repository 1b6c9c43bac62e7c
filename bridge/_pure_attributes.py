"""What modules keep in attributes, other than parameters, buffers and submodules: after a call it is as it was before.

Attributes themselves come and go with the ``__dict__`` that a call gives its modules. Here are the lists, dicts, sets
and objects in them, which code changes without assigning an attribute, and the tensors that it writes into.
"""

import copy
import functools
import operator
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from torch import Tensor, nn

#: What every module has: its tensors, submodules and hooks.
OWN = frozenset({*nn.Module().__dict__, "_parameters", "_buffers", "_modules"})
# What recurrent modules keep is made anew for each call.
_RENEWED = frozenset({"_flat_weights", "_flat_weight_refs"})
_CHANGEABLE = (list, dict, set, deque)
_FUNCTIONS = (
    type,
    functools.partial,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
)


@attrs.define(eq=False)
class Attributes:
    """What is reachable from the attributes of some modules.

    Attributes:
        tensors: tensors, by their ids.
        kept: each list, dict, set or object; what it is changed by, which is its ``__dict__`` or itself; its contents.
        seen: the ids of all that has been looked at.
    """

    tensors: dict[int, Tensor] = attrs.Factory(dict)
    kept: list[tuple[Any, Any, list[Any]]] = attrs.Factory(list)
    seen: set[int] = attrs.Factory(set)

    @classmethod
    def of(cls, modules: Iterable[nn.Module], outside: Iterable[int] = ()) -> "Attributes":
        """Look at the attributes of modules, but not at objects with the ids `outside`, which others hold as well."""
        modules = list(modules)
        found = cls(seen={*outside, *map(id, modules)})
        waiting = [value for module in modules for name, value in module.__dict__.items() if name not in OWN | _RENEWED]
        while waiting:
            waiting += found._look_at(waiting.pop())
        return found

    def _look_at(self, value: Any) -> Iterable[Any]:
        """Note a value; returns what else is to be looked at."""
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
        if isinstance(value, (Tensor, *_FUNCTIONS)) or id(value) in self.seen:
            return ()
        self.seen.add(id(value))
        if isinstance(value, nn.Module):
            # One that is hidden from its parent has no place in the container.
            return (*value.parameters(), *value.buffers())
        if isinstance(value, tuple):
            return value
        changeable = value if isinstance(value, _CHANGEABLE) else _attributes(value)
        if changeable is None:
            return ()
        contents = _contents(changeable)
        self.kept.append((value, changeable, contents))
        return contents

    def released(self, output: Any) -> Any:
        """An output with copies in the place of what is about to be put back."""
        changed = {id(value) for value, _, _ in self._changed()}
        return _copied(output, changed) if changed else output

    def put_back(self) -> None:
        """Give everything the contents that it had."""
        for _, changeable, contents in list(self._changed()):
            changeable.clear()
            if isinstance(changeable, dict):
                half = len(contents) // 2
                for name, value in zip(contents[:half], contents[half:], strict=True):
                    changeable[name] = value
            else:
                (changeable.update if isinstance(changeable, set) else changeable.extend)(contents)

    def _changed(self) -> Iterator[tuple[Any, Any, list[Any]]]:
        for value, changeable, contents in self.kept:
            now = _contents(changeable)
            if len(now) != len(contents) or not all(map(operator.is_, now, contents)):
                yield value, changeable, contents


def _attributes(value: Any) -> dict[str, Any] | None:
    # Objects of torch, graphs for example, are nobody's notes.
    return None if type(value).__module__.startswith("torch.") else getattr(value, "__dict__", None)


def _contents(changeable: Any) -> list[Any]:
    if isinstance(changeable, dict):
        return [*dict.keys(changeable), *dict.values(changeable)]
    return list(changeable)


def _copied(value: Any, changed: set[int]) -> Any:
    if type(value) in (tuple, list):
        return type(value)([_copied(item, changed) for item in value])
    if type(value) is dict:
        return {name: _copied(item, changed) for name, item in value.items()}
    return copy.copy(value) if id(value) in changed else value
