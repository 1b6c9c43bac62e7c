"""When two modules without their tensors are alike, so that their containers can be stacked together."""

import functools
import inspect
from collections.abc import Mapping
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

# What a module keeps about itself, and says nothing of what it computes.
_BOOKKEEPING = frozenset(
    {"_parameters", "_buffers", "_modules", "training", "_flat_weights", "_flat_weight_refs", "_compiled_call_impl"}
)
#: What a module is told when it becomes a part of a bridged one.
CARRIED = ("container_class", "stateful", "apply_inside")
_BY_IDENTITY = (type, BuiltinFunctionType, ModuleType)
_BY_TEXT = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def class_of(module: nn.Module) -> type:
    """The module's class; for a parametrized module, whose class is made for it alone, the one that it had before."""
    return type(module).__mro__[1] if is_parametrized(module) else type(module)


@attrs.define
class Likeness:
    """Descriptions of modules and their settings: texts that are equal where things are alike.

    Plain values compare by what they are, other objects by their attributes, functions and classes by which they are.
    """

    #: What is being described, or was: what refers to itself must come to an end.
    known: dict[int, str] = attrs.Factory(dict)
    alive: list[Any] = attrs.Factory(list)

    def settings(self, module: nn.Module) -> tuple[tuple[str, str], ...]:
        """The module's attributes without its tensors and submodules."""
        own = {name: value for name, value in module.__dict__.items() if name not in _BOOKKEEPING}
        # Hooks are registered under numbers that count all hooks there are.
        own |= {name: list(value.values()) for name, value in own.items() if name.endswith("_hooks") and value}
        return tuple(sorted((name, self.text(value)) for name, value in own.items()))

    def text(self, value: Any) -> str:
        """A value as a text."""
        if isinstance(value, _BY_TEXT):
            return f"{type(value).__name__}:{value!r}"
        if isinstance(value, _BY_IDENTITY):
            return f"{getattr(value, '__qualname__', '')}@{id(value)}"
        if id(value) not in self.known:
            self.alive.append(value)
            self.known[id(value)] = f"({len(self.known)})"
            self.known[id(value)] = self._structure(value)
        return self.known[id(value)]

    def _structure(self, value: Any) -> str:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, (tuple, list)):
            return f"{kind}({','.join(map(self.text, value))})"
        if isinstance(value, (set, frozenset)):
            return f"{kind}({','.join(sorted(map(self.text, value)))})"
        if isinstance(value, Mapping):
            return f"{kind}({','.join(f'{self.text(k)}={self.text(v)}' for k, v in value.items())})"
        if isinstance(value, nn.Module):
            return f"{kind}({self.settings(value)})"
        if isinstance(value, Tensor):
            return f"{kind}({value.dtype},{value.tolist() if value.device.type != 'meta' else tuple(value.shape)})"
        if isinstance(value, torch.Generator):
            return f"{kind}({value.device},{bytes(value.get_state().tolist()).hex()})"
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            return f"{value.__qualname__}@{id(value.__code__)}({self.text([cells, value.__defaults__])})"
        if isinstance(value, functools.partial):
            return f"{kind}({self.text([value.func, value.args, value.keywords])})"
        if isinstance(value, MethodType):
            return f"{kind}({self.text([value.__func__, value.__self__])})"
        attributes = getattr(value, "__dict__", None)
        if attributes is None or inspect.isroutine(value):
            return f"{kind}@{id(value)}"
        return f"{kind}({self.text(dict(attributes))})"


def _is_filled(cell: CellType) -> bool:
    # A name that the function refers to may have no value yet.
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
