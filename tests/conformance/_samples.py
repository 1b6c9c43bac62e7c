"""How a module is made and called: samples, as torch's own tables of modules have them."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

DOUBLE = torch.float64


@attrs.frozen
class Constructor:
    """A class and the arguments of its constructor."""

    cls: Callable[..., nn.Module]
    args: tuple = ()
    kwargs: dict[str, Any] = attrs.Factory(dict)

    @property
    def is_lazy(self) -> bool:
        """Whether the class leaves sizes to be found in the first call."""
        return isinstance(self.cls, type) and issubclass(self.cls, nn.modules.lazy.LazyModuleMixin)

    @property
    def is_plain(self) -> bool:
        """Whether this is a class of torch.nn, made of no other modules."""
        of_modules = any(isinstance(value, nn.Module) for value in (*self.args, *self.kwargs.values()))
        return isinstance(self.cls, type) and not of_modules

    def by_name(self) -> tuple[tuple, dict[str, Any]]:
        """The arguments by name, as far as the signature tells, and those of which it does not."""
        given = dict(inspect.signature(self.cls).bind(*self.args, **self.kwargs).arguments)
        return given.pop("args", ()), {**given.pop("kwargs", {}), **given}

    def module(self, args: tuple, kwargs: dict[str, Any]) -> nn.Module:
        """The module; a lazy one is called, which makes it one of the class without "Lazy" in its name.

        Args:
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
        """
        made = self.cls(*self.args, **self.kwargs)
        if self.is_lazy:
            with torch.no_grad():
                made.to(DOUBLE)(*args, **kwargs)
        return made


@attrs.frozen
class Sample:
    """How to make a module and call it.

    Attributes:
        make: makes the module.
        args: positional arguments of the call. Those floats are differentiated that require grad.
        kwargs: keyword arguments of the call.
        name: what is special about it.
        constructor: class and arguments from which `make` makes the module, if those are plain values.
        train: whether the module is in training mode.
        key: seed of the key from which our layer draws; None for a deterministic call.
        expected: ``expected(module, p, *args, **kwargs)`` in the place of the module's call.
        differentiable: ``f(module, *args, **kwargs)``, the module's values, where torch's derivatives are wrong.
        differentiable_twice: the same, where only torch's second derivatives are wrong.
        before: applied to every differentiated tensor before the call, so that only such values come in.
        axis: inputs are varied by rolling this axis; None rolls all elements as one row.
        lengths: passed to our function only, which takes no packed sequences.
        raises: the errors of torch and of ours, if this call must fail on both sides.
        awkward: whether it belongs to every column that is cheap.
    """

    make: Callable[[], nn.Module]
    args: tuple = ()
    kwargs: dict[str, Any] = attrs.Factory(dict)
    name: str = ""
    constructor: Constructor | None = None
    train: bool = False
    key: int | None = None
    expected: Callable[..., Any] | None = None
    differentiable: Callable[..., Any] | None = None
    differentiable_twice: Callable[..., Any] | None = None
    before: Callable[[Tensor], Tensor] | None = None
    axis: int | None = None
    lengths: Tensor | None = None
    raises: tuple[type[Exception], type[Exception]] | None = None
    awkward: bool = False


@contextlib.contextmanager
def torch_may_warn() -> Iterator[None]:
    """Around torch's side only: it warns of options that it ignores or means to change, ours must not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
