"""Changing fields: a copy of a container, or the buffers of a module that takes its place."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from purenn.errors import ContainerError
from purenn.tree._checks import checked
from purenn.tree._fields import BUFFER, spec_of
from purenn.tree._map import named_leaves
from purenn.tree._walk import walk

C = TypeVar("C")


def replace(p: C, /, **changes: Any) -> C:
    """A copy of a container with some fields changed; every other field is the same object.

    Given a module made by `bridge.to_module` (in the body of a layer function that runs as a module), new buffers are
    copied into the module's own buffers and the module itself is returned.

    Args:
        p: the container.
        **changes: field name = new value.

    Raises:
        ContainerError: there is no such field, or it cannot hold the value.
    """
    spec = spec_of(p)
    if spec is None or isinstance(p, type):
        if isinstance(p, nn.Module):
            return _replace_in_module(p, changes)
        got = f"the class {p.__name__}" if isinstance(p, type) else type(p).__name__
        raise ContainerError(f"replace takes a container, got {got}.")
    cls = type(p)
    if spec.by_alias is None:
        return p.__replace__(**changes)  # pyright: ignore[reportAttributeAccessIssue]
    kinds = spec.kinds
    for name, value in changes.items():
        if name not in kinds:
            raise ContainerError(
                f"{cls.__name__} has no field '{name}'; its fields are: {', '.join(a.name for a in spec.fields)}."
            )
        changes[name] = checked(cls, name, kinds[name], value)
    new = object.__new__(cls)
    for name in kinds:
        object.__setattr__(new, name, changes[name] if name in changes else getattr(p, name))
    return new


def _replace_in_module(module: Any, changes: dict[str, Any]) -> Any:
    for name, value in changes.items():
        if not hasattr(module, name):
            raise ContainerError(f"{type(module).__name__} has no field '{name}' to replace.")
        current = getattr(module, name)
        if value is current or _same_children(current, value):
            continue
        if isinstance(current, nn.Module) and spec_of(value) is not None and not isinstance(value, type):
            _adopt(current, value)
            continue
        if not (name in module._buffers and isinstance(value, Tensor) and isinstance(current, Tensor)):
            raise ContainerError(
                f"replace(module, {name}=...) can change buffers only while a function runs as a module: '{name}' of "
                f"{type(module).__name__} is no buffer, so the new value would be lost."
            )
        with torch.no_grad():
            current.copy_(value)
    return module


def _adopt(module: Any, p: Any) -> None:
    # A container made of the module's own tensors and of new buffers.
    now = dict(named_leaves(module.tree()))
    with torch.no_grad():
        for leaf, value in walk(p):
            if value is now[leaf.path]:
                continue
            if leaf.kind != BUFFER:
                raise ContainerError(
                    f"replace(module, ...) can change buffers only while a function runs as a module: '{leaf.path}' of "
                    f"{type(p).__name__} is a parameter, so the new value would be lost."
                )
            now[leaf.path].copy_(value)


def _same_children(current: Any, value: Any) -> bool:
    if isinstance(value, (tuple, list)) and hasattr(current, "__len__") and len(current) == len(value):
        return all(old is new or _same_children(old, new) for old, new in zip(current, value, strict=True))
    if isinstance(value, dict) and hasattr(current, "keys") and set(current.keys()) == set(value):
        return all(current[k] is value[k] or _same_children(current[k], value[k]) for k in value)
    return False
