"""Writes in place, which while a module runs purely change nothing that the caller can see.

Tensors of the caller (parameters, buffers, arguments) are never written into: the new value takes the place of the old
one wherever the module's code uses that again. So do tensors into which `vmap` cannot write. What the module has made
itself is written into as ever.
"""

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from bridge._pure_values import is_unknown
from purenn._modes import is_plain

_compiled: Any = torch._C
_OWNERS = (Tensor, torch, _compiled._nn, torch.nn.functional, _compiled._special)
_NOT_WRITING = frozenset({"requires_grad_", "share_memory_", "rename_", "refine_names_"})
_OPERATORS = {
    name: f"__{name[3:]}"
    for name in (
        *("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"),
        *("__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "__idiv__"),
    )
}


def writes_in_place(function: Any) -> bool:
    """Whether a function of torch writes into its first argument, by its name."""
    name = getattr(function, "__name__", "")
    if name == "__setitem__" or name in _OPERATORS:
        return True
    return name.endswith("_") and not name.endswith("__") and name not in _NOT_WRITING


@attrs.define(eq=False)
class Writes:
    """What may be written into, and what has been."""

    #: Tensors of the caller, by their ids.
    protected: dict[int, Tensor] = attrs.Factory(dict)
    #: The dicts in which modules keep their parameters, and those for their buffers.
    homes: list[tuple[dict[str, Any], dict[str, Any]]] = attrs.Factory(list)
    #: Copies of the module's buffers, which plain code may write into.
    copies: dict[int, Tensor] = attrs.Factory(dict)
    #: The values that have taken the place of others, by the ids of those.
    newest: dict[int, Tensor] = attrs.Factory(dict)
    #: Other tensors on the same memory as protected ones: id -> the protected one.
    aliases: dict[int, Tensor] = attrs.Factory(dict)
    alive: list[Tensor] = attrs.Factory(list)
    #: The ids of copies into which kernels have written that do not count versions.
    touched: set[int] = attrs.Factory(set)

    def put(self, old: Tensor, new: Tensor, *, straight: bool = False) -> Tensor:
        """Let a new value take the place of a tensor; `straight` is for writes past autograd, by ``.data``."""
        # Only what is put in place of the data may have another dtype.
        new = new if straight or new.dtype == old.dtype else new.to(old.dtype)
        is_parameter = old.is_floating_point() and any(old is t for own, _ in self.homes for t in own.values())
        if is_parameter and old.shape == new.shape and (straight or not torch.is_grad_enabled()):
            # Written past autograd, the parameter has another value, and is still itself to every derivative.
            with torch.enable_grad():
                new = new.detach() + (old - old.detach()).to(new.dtype)
        self.alive += [old, new]
        self.newest[id(old)] = new
        for home in self.homes:
            for own in home:
                for name, tensor in own.items():
                    if tensor is old:
                        own[name] = new
        original = self.aliases.get(id(old))
        if original is not None and original.shape == new.shape:
            self.put(self.latest(original), new, straight=True)
        return new

    def latest(self, tensor: Tensor) -> Tensor:
        """What has taken the place of a tensor, or the tensor itself."""
        while id(tensor) in self.newest:
            tensor = self.newest[id(tensor)]
        return tensor

    def renewed(self, value: Any) -> Any:
        """Arguments with the newest values in them."""
        if isinstance(value, Tensor):
            return self.latest(value)
        if type(value) in (tuple, list):
            return type(value)([self.renewed(item) for item in value])
        if type(value) is dict:
            return {name: self.renewed(item) for name, item in value.items()}
        return value

    def alias(self, tensor: Tensor, same_memory: Tensor) -> Tensor:
        """Note that a tensor lies on the memory of a protected one."""
        if self._is_protected(tensor) and same_memory is not tensor:
            self.alive.append(same_memory)
            self.aliases[id(same_memory)] = self.aliases.get(id(tensor), tensor)
        return same_memory

    def in_place(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a function that writes into its first argument."""
        target = args[0]
        if not isinstance(target, Tensor):
            return function(*args, **kwargs)
        is_copy = id(target) in self.copies
        if not self._is_protected(target) and not (is_copy and not is_plain()):
            try:
                return function(*args, **kwargs)
            except RuntimeError as error:
                if "inplace" not in str(error) and "in-place" not in str(error):
                    raise
        result = _out_of_place(function, args, kwargs)
        result = self.put(target, result)
        return None if function.__name__ == "__setitem__" else result

    def option_in_place(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a function with the option ``inplace=True``."""
        if not self._is_protected(args[0]):
            try:
                return function(*args, **kwargs)
            except RuntimeError as error:
                if "inplace" not in str(error) and "in-place" not in str(error):
                    raise
        return self.put(args[0], function(*args, **{**kwargs, "inplace": False}))

    def into(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a function that is given a tensor to write its result into, as ``out=``."""
        out = kwargs["out"]
        if not isinstance(out, Tensor) or not (self._is_protected(out) or not is_plain()):
            return function(*args, **kwargs)
        return self.put(out, function(*args, **{**kwargs, "out": None}))

    def _is_protected(self, tensor: Tensor) -> bool:
        if id(tensor) in self.protected or id(tensor) in self.aliases:
            return True
        base = tensor._base
        return base is not None and (id(base) in self.protected or id(base) in self.aliases)


def _out_of_place(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Tensor:
    name, (target, *rest) = function.__name__, args
    if name == "__setitem__":
        return _with_item(target, *rest)
    if name in _OPERATORS:
        return getattr(torch.Tensor, _OPERATORS[name])(target, *rest)
    if name in ("copy_", "set_"):
        return rest[0].to(target.dtype).expand(target.shape) + torch.zeros_like(target)
    if name == "zero_":
        return torch.zeros_like(target)
    if name == "fill_":
        return torch.zeros_like(target) + rest[0]
    for owner in _OWNERS:
        if hasattr(owner, name[:-1]):
            return getattr(owner, name[:-1])(*args, **kwargs)
    # A function that has no other form: write into a copy.
    return function(target.clone(), *rest, **kwargs)


def _with_item(target: Tensor, index: Any, value: Any) -> Tensor:
    if isinstance(index, Tensor) and index.dtype == torch.bool and not (isinstance(value, Tensor) and value.dim()):
        while index.dim() < target.dim():
            index = index.unsqueeze(-1)
        return torch.where(index, value, target)
    changed = target.clone()
    for part in (value, *(index if isinstance(index, tuple) else (index,))):
        if isinstance(part, Tensor) and part.numel() and is_unknown(part):
            # Adds nothing but what is mapped over, which must be a dimension of a tensor that is written into.
            here = torch.zeros_like(part.flatten()[0], dtype=torch.bool)
            changed = torch.where(here, torch.zeros_like(changed), changed)
    changed[index] = value
    return changed
