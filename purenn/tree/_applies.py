"""Binding a pure function to its container, for both carriers.

``@applies(Linear)`` above ``def linear(p, x)`` makes ``p(x)`` mean ``linear(p, x)``. The same function also takes an
`nn.Module` in the place of ``p``: a module made by `bridge.to_module` is *called* (so its hooks fire), any other module
with the right attributes is simply read.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import nn

from purenn.errors import ContainerError
from purenn.tree._fields import Spec, is_container, spec_of
from purenn.tree._ties import resolved, tie_like
from purenn.tree._watch import begun, shown

P = ParamSpec("P")
R = TypeVar("R")


class Binding(NamedTuple):
    """What `applies` knows about a class and its function.

    Attributes:
        raw: the function as it was written.
        layer: the function as users call it.
        stateful: True if the function returns ``(y, new container)``, None if that depends on the members.
        takes: names of the options among ``key`` and ``train`` that the function takes.
        stands_in: whether other layers' functions leave containers of this class to this one.
    """

    raw: Callable[..., Any]
    layer: Callable[..., Any]
    stateful: bool | None
    takes: frozenset[str]
    stands_in: bool = False


def applies(
    cls: type, *, stateful: bool | None = None, stands_in: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Bind a function ``f(p, *inputs, ...)`` to the container class of its first argument.

    Args:
        cls: a class made by `container`.
        stateful: True if the function itself updates buffers and returns ``(y, p_new)``. By default a container is
            stateful exactly if one of its members is (see `is_stateful`), and then its function must return the pair.
        stands_in: whether this function takes over where another layer's function is given a container of this class:
            ``linear(p, x)`` is then ``p(x)``. Default: False.

    Returns:
        The decorator. The decorated function has the same signature, but takes its container by position only.

    Raises:
        ContainerError: `cls` is no container.

    Example:
        >>> import torch, purenn as pn
        >>> @pn.container
        ... class Scale(pn.Layer):
        ...     factor: torch.Tensor
        >>> @pn.applies(Scale)
        ... def scale(p: Scale, x: torch.Tensor) -> torch.Tensor:
        ...     return p.factor * x
        >>> Scale(torch.tensor(2.0))(torch.tensor(3.0))
        tensor(6.)
    """
    spec = spec_of(cls)
    if spec is None or spec.owner is not cls:
        name = getattr(cls, "__name__", repr(cls))
        raise ContainerError(f"@pn.applies({name}): {name} is no container; put @pn.container above the class.")

    def bind(fn: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def layer(p: Any, /, *args: Any, **kwargs: Any) -> Any:
            # The hot path first: this test is all that a layer's call adds to its function's.
            if isinstance(p, cls) and p._marks is None:
                return fn(p, *args, **kwargs)  # pyright: ignore[reportCallIssue]
            if isinstance(p, nn.Module):
                return _apply_module(fn, p, args, kwargs)
            return _apply_marked(fn, p, args, kwargs)

        parameters = inspect.signature(fn).parameters
        takes = frozenset({"key", "train"} & parameters.keys())
        cls.__container_binding__ = Binding(fn, layer, stateful, takes, stands_in)
        cls.__call__ = layer
        return layer

    return bind


def _apply_marked(fn: Callable[..., Any], p: Any, args: tuple, kwargs: dict) -> Any:
    known = binding_of(p)
    if known is not None and known.stands_in and known.raw is not fn:
        return known.layer(p, *args, **kwargs)
    marks = getattr(p, "_marks", None)
    if marks is None or not (marks.tied or marks.watched is not None):
        return fn(p, *args, **kwargs)
    watched = marks.watched if known is not None and known.raw is fn else None
    if watched is not None:
        begun(watched, args)
    out = fn(resolved(p) if marks.tied else p, *args, **kwargs)
    y, new = out if is_stateful(p) else (out, None)
    if watched is not None:
        y = shown(watched, y)
    if new is None:
        return y
    return y, tie_like(new, p) if marks.tied else new


def _apply_module(fn: Callable[..., Any], module: Any, args: tuple, kwargs: dict) -> Any:
    known = binding_of(module)
    if known is not None and (known.raw is fn or known.stands_in):
        return module.apply_inside(*args, **kwargs)
    return fn(module, *args, **kwargs)


def binding_of(value: Any) -> Binding | None:
    """The `Binding` of a container, a container class, or a module that carries one; None where there is none."""
    if isinstance(value, nn.Module):
        value = getattr(value, "container_class", None)
    cls = value if isinstance(value, type) else type(value)
    return getattr(cls, "__container_binding__", None)


def container_of(p: Any) -> Any:
    """The container itself, or the one that a module made by `bridge.to_module` stands for, with its live tensors."""
    module: Any = p
    return module.tree() if isinstance(p, nn.Module) else p


def is_stateful(p: Any) -> bool:
    """Whether applying `p` returns ``(y, p_new)`` instead of ``y``.

    True for a container whose function was bound with ``stateful=True`` and for every container, tuple or dict with
    such a member. It depends on the structure alone. Modules made by `bridge.to_module` answer as their container.
    """
    if isinstance(p, nn.Module):
        known = p.__dict__.get("stateful")
        return any(is_stateful(child) for child in p.children()) if known is None else known
    if is_container(p):
        known = binding_of(p)
        if known is not None and known.stateful is not None:
            return known.stateful
        spec: Spec = p.__container_spec__
        return any(is_stateful(getattr(p, name)) for name in spec.dynamic)
    if isinstance(p, dict):
        return any(is_stateful(child) for child in p.values())
    return isinstance(p, (tuple, list)) and any(is_stateful(child) for child in p)
