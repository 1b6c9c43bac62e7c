"""What a field of a container can hold."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from purenn.errors import ArgumentError, ContainerError
from purenn.tree._fields import STATIC, is_container


def checked(cls: type, name: str, kind: str, value: Any) -> Any:
    """`value` as the field stores it; refuses at once what could only fail later.

    Raises:
        ContainerError: a tensor, module or unhashable value in a static field; a function, string or module in a
            field for parameters.
    """
    if kind == STATIC:
        if _holds_tensor(value):
            raise ContainerError(
                f"{cls.__name__}.{name} is a static field and cannot hold a tensor (got {_kind_of(value)}): it would "
                f"be a part of the structure, invisible to grad, save and to(device). Declare it as a parameter (plain "
                f"annotation) or as pn.buffer()."
            )
        if not torch.compiler.is_compiling():
            _require_hashable(cls, name, value)
        return value
    return value if isinstance(value, Tensor) else stored(f"{cls.__name__}.{name}", value)


def stored(place: str, value: Any) -> Any:
    """`value` as a field for parameters and children stores it; `place` names the field.

    Raises:
        ContainerError: a function, string, module or set.
    """
    if value is None or isinstance(value, Tensor) or is_container(value):
        return value
    # Fresh tuples and dicts, so that nobody can change the container through the ones that it was made from.
    if type(value) in (tuple, list):
        return tuple([stored(f"{place}.{number}", item) for number, item in enumerate(value)])
    if type(value) is dict:
        return {key: stored(f"{place}.{key}", item) for key, item in value.items()}
    if isinstance(value, nn.Module):
        raise ContainerError(
            f"{place} cannot hold the module {type(value).__name__}, which is no pytree: "
            f"turn it into a container with bridge.from_module(module)."
        )
    if isinstance(value, (set, frozenset)):
        raise ContainerError(f"{place} cannot hold {a_or_an(value)}, whose items have no order: use a tuple.")
    if isinstance(value, str) or callable(value):
        raise ContainerError(
            f"{place} holds parameters or children and cannot hold {_kind_of(value)}: declare the field as "
            f"pn.static(), or wrap a function with purenn.layers.Lambda(function)."
        )
    if isinstance(value, (tuple, list, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            stored(f"{place}.{key}", item)
    return value


def a_or_an(value: Any) -> str:
    """The name of a value's class with its article, for messages."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def require_function(name: str, fn: Any) -> None:
    """Check what the transformation `name` is asked to transform.

    Raises:
        ArgumentError: it cannot be called.
    """
    if not callable(fn):
        raise ArgumentError(f"{name}: a function is transformed, got {a_or_an(fn)}: write f, not f(x).")


def _kind_of(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"the string {value!r}" if isinstance(value, str) else a_or_an(value)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor) or is_container(value):
        return True
    if isinstance(value, nn.Module):
        return next(value.parameters(), None) is not None or next(value.buffers(), None) is not None
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    if isinstance(value, functools.partial):
        return _holds_tensor((value.func, value.args, value.keywords))
    return isinstance(value, (tuple, list, set, frozenset)) and any(_holds_tensor(item) for item in value)


def _require_hashable(cls: type, name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise ContainerError(
            f"{cls.__name__}.{name} is a static field and must be hashable, got {a_or_an(value)}: "
            f"use a tuple instead of a list, and a tuple of pairs instead of a dict."
        ) from error
