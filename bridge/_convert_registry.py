"""What is known about module classes: which container each becomes, and how to make it again of that."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from bridge._convert_torchvision import torchvision_conversions
from bridge._native import Conversion, torch_conversions
from purenn.errors import BridgeError
from purenn.tree import is_container
from purenn.tree._checks import a_or_an
from purenn.tree._fields import spec_of

_REGISTERED: dict[type, Conversion] = {}
_TORCH = torch_conversions()
_BY_NAME = torchvision_conversions()
_BACK_OF_MODULE: dict[type, Conversion] = {}
_BACK_OF_CONTAINER: dict[type, Conversion] = {}
# What a subclass may define without computing something else than its base.
_HARMLESS = frozenset({"__init__", "__module__", "__doc__", "__annotations__", "__qualname__", "__parameters__"})


def register_conversion(cls: type[nn.Module], *, to: Conversion, back: Conversion | None = None) -> None:
    """Say which container `convert` makes of a module class, and how `to_module` makes such a module again.

    Modules of a subclass count as modules of the class if the subclass changes nothing but the constructor.

    Args:
        cls: the class. What is registered for it takes the place of an earlier registration, and of what is known about
            a class of torch.nn.
        to: ``f(module, part)``, which makes the container. ``part(name)`` is the container of the submodule
            ``module.name``: a tuple for a ModuleList, a dict for a ModuleDict, None for None. The tensors must be the
            module's own (``module.weight``, not a copy of it), so that those that are tied or frozen are recognised. If
            `f` raises a BridgeError, the module stays opaque, and `report` gives its text as the reason.
        back: ``f(p, part)``, which makes the module of a container of the class that `to` has returned. ``part(name)``
            is what becomes of the field ``p.name``: a module, a parameter or a buffer, which is to be put into the new
            module under a name of its own. Without it `to_module` makes a `bridge.Module` of such containers. It is
            known as soon as `to` has made a container, or at once if its first argument is annotated with the class.

    Raises:
        BridgeError: `cls` is no module class, or `to` or `back` is no function.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> from purenn.layers import Linear, linear
        >>> class Residual(torch.nn.Module):
        ...     def __init__(self, body):
        ...         super().__init__()
        ...         self.body = body
        ...     def forward(self, x):
        ...         return x + self.body(x)
        >>> @pn.container
        ... class PureResidual(pn.Layer):
        ...     body: Linear
        >>> @pn.applies(PureResidual)
        ... def residual(p: PureResidual, x: torch.Tensor) -> torch.Tensor:
        ...     return x + linear(p.body, x)
        >>> bridge.register_conversion(
        ...     Residual,
        ...     to=lambda module, part: PureResidual(part("body")),
        ...     back=lambda p, part: Residual(part("body")),
        ... )
        >>> p = bridge.convert(Residual(torch.nn.Linear(3, 3)))
        >>> p
        PureResidual(
          (body): Linear(in_features=3, out_features=3, bias=True)
        )
        >>> type(bridge.to_module(p)).__name__
        'Residual'
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise BridgeError(f"register_conversion takes a module class, got {a_or_an(cls)}.")
    for name, function in (("to", to), ("back", back)):
        if not callable(function) and not (name == "back" and back is None):
            raise BridgeError(
                f"register_conversion: {name} must be a function of "
                f"{'a module and its' if name == 'to' else 'a container and its'} parts, got {a_or_an(function)}."
            )
    _REGISTERED[cls] = to
    _BACK_OF_MODULE.pop(cls, None)
    if back is not None:
        _BACK_OF_MODULE[cls] = back
        annotated = _first_annotation(back)
        if annotated is not None and spec_of(annotated) is not None:
            _BACK_OF_CONTAINER[annotated] = back


def _first_annotation(function: Callable[..., Any]) -> Any:
    try:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    except (NameError, ValueError, TypeError):
        return None
    annotation = parameters[0].annotation if parameters else None
    return annotation if isinstance(annotation, type) else None


def known_base(cls: type) -> type | None:
    """The class whose conversion serves a module class, which computes the same; None if there is none."""
    for base in cls.__mro__:
        if base in _REGISTERED or base in _TORCH or _qualified(base) in _BY_NAME:
            return base if _differs_in_constructor_only(cls, base) else None
    return None


def nearest_known(cls: type) -> type | None:
    """The first class that has a conversion among a class and its bases, whether it computes the same or not."""
    return next((b for b in cls.__mro__ if b in _REGISTERED or b in _TORCH or _qualified(b) in _BY_NAME), None)


def conversion_of(base: type) -> Conversion:
    """The conversion of a class that `known_base` has found."""
    # What is registered comes first.
    return _REGISTERED.get(base) or _TORCH.get(base) or _BY_NAME[_qualified(base)]


def is_registered(base: type) -> bool:
    """Whether the conversion is a user's."""
    return base in _REGISTERED


def note_container(base: type, made: Any) -> None:
    """Remember that containers of this class are made of modules of a class, and how to go back."""
    back = _BACK_OF_MODULE.get(base)
    if back is not None and is_container(made):
        _BACK_OF_CONTAINER[type(made)] = back


def back_of(p: Any) -> Conversion | None:
    """How to make a module of a container, if that is registered."""
    return _BACK_OF_CONTAINER.get(type(p))


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _differs_in_constructor_only(cls: type, base: type) -> bool:
    # Names that the base has not are never used by its code.
    between = cls.__mro__[: cls.__mro__.index(base)]
    return not any(hasattr(base, name) for c in between for name in vars(c) if name not in _HARMLESS)
