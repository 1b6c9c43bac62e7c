"""While a module runs purely, every function of torch that its code calls is seen here first."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from bridge import _pure_derivatives, _pure_draws, _pure_functions, _pure_norms, _pure_recurrent, _pure_seeded
from bridge._pure_context import Context, Handler
from bridge._pure_questions import explained
from bridge._pure_writes import Writes, writes_in_place
from purenn._modes import is_plain

_HANDLERS: dict[Any, Handler] = {
    **_pure_norms.HANDLERS,
    **_pure_recurrent.HANDLERS,
    **_pure_draws.HANDLERS,
    **_pure_seeded.HANDLERS,
    **_pure_functions.HANDLERS,
    **_pure_derivatives.HANDLERS,
}


def _write(context: Context, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return context.writes.in_place(function, args, kwargs)


def _share(context: Context, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return context.writes.alias(args[0], function(*args, **kwargs))


def _data(context: Context, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    # Batched tensors do not give their data away.
    context.writes.give_away(args[0])
    return context.writes.alias(args[0], function(*args) if is_plain() else args[0].detach())


def _memory(context: Context, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    context.writes.give_away(args[0])
    return function(*args, **kwargs)


def _set_data(context: Context, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    tensor, data = args
    if data is not tensor and context.writes.aliases.get(id(data)) is not tensor:
        context.writes.put(tensor, data, straight=True)


def _kind(function: Any) -> Handler | None:
    """What to do with a function that has no handler: its answer is kept by `Pure`."""
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__"):
        if function.__self__ is not Tensor.data:
            return None
        return _data if name == "__get__" else _set_data
    if function in (Tensor.detach, Tensor.view_as, Tensor.view):
        return _share
    if function is Tensor.numpy:
        return _memory
    return _write if writes_in_place(function) else None


class Pure(TorchFunctionMode):
    """The mode in which a module runs purely.

    Args:
        writes: what may be written into.
        key: the key to draw from, or None.
        paths: names of the running modules, by their ids.
    """

    def __init__(self, writes: Writes, key: Tensor | None, paths: Mapping[int, str]) -> None:
        super().__init__()
        self._context = Context(writes, key, paths, self._inside)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, or what stands for it."""
        kwargs = kwargs or {}
        context = self._context
        if context.writes.newest:
            args, kwargs = context.writes.renewed((args, kwargs))
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(context, *args, **kwargs)
        if kwargs:
            if kwargs.get("inplace") and args:
                return context.writes.option_in_place(func, args, kwargs)
            if kwargs.get("out") is not None:
                return context.writes.into(func, args, kwargs)
        special = _special(func)
        try:
            return func(*args, **kwargs) if special is None else special(context, func, args, kwargs)
        except RuntimeError as error:
            ours = explained(error, getattr(func, "__name__", ""), context.paths)
            if ours is None:
                raise
            raise ours from error

    def _inside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self:
            return _opened(function)(*args, **kwargs)


_special: Callable[[Any], Any] = functools.lru_cache(maxsize=4096)(_kind)


@functools.cache
def _opened(function: Any) -> Callable[..., Any]:
    """A function of torch's that does not hand itself to modes once more, so that they see what it calls."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    inside = {**function.__globals__, **{name: lambda *args: False for name in names}}
    made = types.FunctionType(function.__code__, inside, function.__name__, function.__defaults__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made
