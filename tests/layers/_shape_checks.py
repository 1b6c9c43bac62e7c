"""Checks at run time that results have the shapes which the annotations promise, for `pytest --shapes`.

jaxtyping's import hook asks `checked` for a checker of each function of the packages below. Only shapes are checked:
the container may be a module in its place, and that is the type checker's business. They are checked after the call, so
that wrong arguments meet the library's own errors first, and with their names bound by the arguments.
"""

import types
import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

PACKAGES = ["purenn.layers", "purenn.losses", "purenn.models", "purenn.ops"]


def install() -> None:
    """Check all functions of the packages that are imported from now on."""
    install_import_hook(PACKAGES, f"{__name__}.checked")


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that checks the annotations of shapes when it is called; `fn` itself if its result has none."""
    shapes = {name: kept for name, annotation in fn.__annotations__.items() if (kept := _shapes(annotation)) is not Any}
    if "return" not in shapes:
        return fn
    like = typing.cast(types.FunctionType, fn)
    new = types.FunctionType(like.__code__, like.__globals__, like.__name__, like.__defaults__, like.__closure__)
    new.__kwdefaults__ = like.__kwdefaults__
    new.__annotations__ = shapes
    return beartype(new)


def _shapes(annotation: Any) -> Any:
    # The annotation with Any in the place of everything that is no array; Any where there is none.
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        arrays = [part for part in parts if part is not type(None)]
        return annotation if all(_shapes(part) is part for part in arrays) else Any
    if typing.get_origin(annotation) is tuple and Ellipsis not in parts:
        kept = [_shapes(part) for part in parts]
        return Any if all(part is Any for part in kept) else tuple[*kept]
    return annotation if isinstance(annotation, type) and issubclass(annotation, AbstractArray) else Any
