"""The structure of a tree as JSON, in which `torch.export.save` writes how a program is called."""

import sys
from functools import reduce
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from purenn.errors import StructureError
from purenn.tree._checks import a_or_an
from purenn.tree._fields import Marks

_PLAIN = (bool, int, float, str, type(None))


def dumpable(value: Any) -> Any:
    """A static field, the marks of a container, or a tuple of such as JSON: what is not plain as ``{kind: content}``.

    Raises:
        StructureError: it is an object of another class, or a function that has no name in a module.
    """
    if type(value) in _PLAIN:
        return value
    if type(value) is Marks:
        return {"marks": [sorted(value.frozen), value.tied, value.watched]}
    if type(value) is tuple:
        return {"tuple": [dumpable(item) for item in value]}
    if type(value) is frozenset:
        return {"frozenset": [dumpable(item) for item in sorted(value, key=repr)]}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (torch.dtype, torch.device)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        # Those of C say nothing of a module, or that of their implementation.
        for name in (f"{value.__module__}:{value.__qualname__}", f"torch:{value.__name__}"):
            if _found(name) is value:
                return {"object": name}
    raise StructureError(
        f"a container with {a_or_an(value)} in its structure ({value!r}) cannot be an input or output of a program "
        f"that is saved: use numbers, text, tuples, dtypes and functions of modules in static fields, or export a "
        f"function that has the container in it instead of taking it."
    )


def from_dumpable(content: Any) -> Any:
    """The inverse of `dumpable`.

    Raises:
        StructureError: a function is not there: the module that defines it must be imported before.
    """
    if not isinstance(content, dict):
        return content
    ((kind, inner),) = content.items()
    if kind == "marks":
        return Marks(frozenset(inner[0]), inner[1], inner[2])
    if kind == "object":
        found = _found(inner)
        if found is None:
            raise StructureError(f"the program needs {inner}: import its module before the program is loaded.")
        return found
    if kind == "dtype":
        return getattr(torch, inner)
    make = {"tuple": tuple, "frozenset": frozenset}.get(kind)
    if make is not None:
        return make([from_dumpable(item) for item in inner])
    return complex(*inner) if kind == "complex" else torch.device(inner)


def _found(name: str) -> Any:
    # Nothing is imported here: a file must not be able to run code.
    module, _, path = name.partition(":")
    return reduce(lambda owner, part: getattr(owner, part, None), path.split("."), sys.modules.get(module))
