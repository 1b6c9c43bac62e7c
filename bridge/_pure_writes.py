"""Writes in place, which while a module runs purely change nothing that the caller can see.

Tensors of the caller (parameters, buffers, arguments) are never written into: the new value takes the place of the old
one wherever the module's code uses that again. So do tensors into which `vmap` cannot write. What the module has made
itself is written into as ever.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from bridge._pure_values import is_unknown
from bridge._pure_views import begins_within, is_seen_by_others, memory_of, with_part
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
    #: The protected tensors by their memory, once that has been asked for.
    memories: dict[int, list[Tensor]] | None = None
    #: The ids of copies that may have been written into without their counting it: by kernels, `.data` and NumPy.
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
        """Note that a tensor lies on the memory of a protected one, or of a copy that cannot be written into."""
        is_fixed = self._is_protected(tensor) or (id(tensor) in self.copies and not is_plain())
        if is_fixed and same_memory is not tensor:
            self.alive.append(same_memory)
            self.aliases[id(same_memory)] = self.aliases.get(id(tensor), tensor)
        return same_memory

    def give_away(self, tensor: Tensor) -> None:
        """Note that code gets hold of the memory of a copy, past what counts writes."""
        whole = self._whole(tensor)
        if id(whole) in self.copies:
            self.touched.add(id(whole))

    def in_place(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a function that writes into its first argument."""
        target = args[0]
        if not isinstance(target, Tensor):
            return function(*args, **kwargs)
        is_copy = id(target) in self.copies
        by_mask = function.__name__ == "__setitem__" and _selects_by_values(args[1])
        if not self._is_protected(target) and not ((is_copy or by_mask) and not is_plain()):
            try:
                return function(*args, **kwargs)
            except RuntimeError as error:
                if not _can_be_put(error, target):
                    raise
        result = self._put_into(target, _out_of_place(function, args, kwargs))
        return None if function.__name__ == "__setitem__" else result

    def option_in_place(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a function with the option ``inplace=True``."""
        if not self._is_protected(args[0]):
            try:
                return function(*args, **kwargs)
            except RuntimeError as error:
                if not _can_be_put(error, args[0]):
                    raise
        return self._put_into(args[0], function(*args, **{**kwargs, "inplace": False}))

    def into(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a function that is given a tensor to write its result into, as ``out=``."""
        out = kwargs["out"]
        if not isinstance(out, Tensor) or not (self._is_protected(out) or not is_plain()):
            return function(*args, **kwargs)
        return self.put(out, function(*args, **{**kwargs, "out": None}))

    def _put_into(self, target: Tensor, result: Tensor) -> Tensor:
        """Let a result take the place of a tensor, also in what that is a view of."""
        whole = self._whole(target)
        if whole is not target:
            self.put(whole, with_part(self.latest(whole), target, result))
        return self.put(target, result)

    def _is_protected(self, tensor: Tensor) -> bool:
        whole = self._whole(tensor)
        return id(whole) in self.protected or id(whole) in self.aliases

    def _whole(self, tensor: Tensor) -> Tensor:
        """What a tensor is a view of, or the tensor itself."""
        base = tensor if tensor._base is None else tensor._base
        for known in (tensor, base):
            if id(known) in self.protected or id(known) in self.aliases or id(known) in self.copies:
                return known
        if base is tensor and is_plain():
            return tensor
        # Views of batched tensors do not say what they are views of, and parameters may be views themselves.
        if self.memories is None:
            self.memories = defaultdict(list)
            for protected in self.protected.values():
                if isinstance(protected, Tensor):
                    self.memories[memory_of(protected)].append(protected)
        among = self.memories.get(memory_of(tensor), ())
        return next((whole for whole in among if begins_within(tensor, whole)), base)


def _can_be_put(error: RuntimeError, target: Tensor) -> bool:
    """Whether a write that torch has refused may be made by a new tensor in the place of the old one."""
    text = str(error)
    if "inplace" in text or "in-place" in text:
        return True
    # A batched value for what is not batched. Others may see that through views of it, which cannot be replaced.
    too_large = "has more elements than `self`" in text or "doesn't match the broadcast shape" in text
    return too_large and not is_plain() and not is_seen_by_others(target)


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


def _selects_by_values(index: Any) -> bool:
    # What `_with_item` does without looking at them.
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _with_item(target: Tensor, index: Any, value: Any) -> Tensor:
    if _selects_by_values(index) and not (isinstance(value, Tensor) and value.dim()):
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
