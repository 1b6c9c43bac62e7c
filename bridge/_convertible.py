"""Which modules a native container can stand for."""

from collections.abc import Iterator
from typing import Any, get_args

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from bridge._convert_registry import known_base, nearest_known
from bridge._module import Module, is_changed
from bridge._opaque import Opaque
from purenn.errors import BridgeError
from purenn.tree import Layer, is_container
from purenn.tree._checks import a_or_an
from purenn.tree._fields import BUFFER, PARAMETER, Spec, spec_of
from purenn.tree._walk import walk

_HOOKS = {
    "_forward_pre_hooks": "forward pre-hooks",
    "_forward_hooks": "forward hooks",
    "_backward_pre_hooks": "backward pre-hooks",
    "_backward_hooks": "backward hooks",
}


def why_opaque(module: nn.Module) -> str | None:
    """Why a module can have no native container, None if nothing is seen yet that speaks against it."""
    cls = type(module)
    if isinstance(module, Module):
        return "others have put parameters, buffers or modules into it" if is_changed(module) else None
    if is_parametrized(module):
        return "it is parametrized"
    if known_base(cls) is None:
        base = nearest_known(cls)
        return "its class has no conversion" if base is None else f"a subclass of {base.__name__} may differ from it"
    if "forward" in vars(module):
        return "it has a forward of its own"
    hooks = [text for name, text in _HOOKS.items() if getattr(module, name)]
    return f"it has {' and '.join(hooks)}" if hooks else None


def require_parts(made: Any) -> None:
    """Require that the parts of a container are of the classes that its fields are annotated with.

    Raises:
        BridgeError: one is not. Functions read the fields of parts by name, so they would misread it.
    """
    spec: Spec = made.__container_spec__
    for field in spec.fields:
        allowed = tuple(_classes(field.type))
        for part in _containers(getattr(made, field.name)) if allowed else ():
            if not isinstance(part, allowed):
                kind = f"an opaque {part._skeleton}" if isinstance(part, Opaque) else a_or_an(part)
                expected = " or ".join(cls.__name__ for cls in allowed)
                raise BridgeError(f"its part '{field.name}' is or has {kind}, expected {expected}")


def _classes(annotation: Any) -> Iterator[type]:
    if annotation is Layer or spec_of(annotation) is not None:
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def _containers(value: Any) -> Iterator[Any]:
    if is_container(value):
        yield value
    elif isinstance(value, (tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def require_same_tensors(made: Any, module: nn.Module) -> None:
    """Require that the leaves of a container are the parameters and buffers of the module, all of them and no others.

    Raises:
        BridgeError: they are not, because someone has put something into the module or taken something out.
    """
    kinds = {id(value): leaf.kind for leaf, value in walk(made)}
    tensors = {name: (value, PARAMETER) for name, value in module.named_parameters()}
    tensors |= {name: (value, BUFFER) for name, value in module.named_buffers()}
    for name, (value, kind) in tensors.items():
        if kinds.pop(id(value), None) != kind:
            raise BridgeError(f"its {kind} '{name}' has no place in {a_or_an(made)}")
    if kinds:
        raise BridgeError("some of its tensors are neither parameters nor buffers")
