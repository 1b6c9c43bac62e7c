"""Losses as containers: the class holds the options of a pure function under the function's own names."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from purenn.tree import applies
from purenn.tree._fields import spec_of

C = TypeVar("C", bound=type)


def binds(loss: Callable[..., Tensor]) -> Callable[[C], C]:
    """Bind a container class to a loss: ``p(prediction, target)`` is the loss with the container's fields as options.

    Args:
        loss: a pure function, whose keyword-only arguments have the names of the container's fields.
    """

    def bind(cls: C) -> C:
        spec = spec_of(cls)
        assert spec is not None
        options = tuple(field.name for field in spec.fields)

        def apply(p: Any, *tensors: Any) -> Tensor:
            return loss(*tensors, **{name: getattr(p, name) for name in options})

        apply.__name__, apply.__doc__ = loss.__name__, f"`{loss.__name__}` with the container's fields as options."
        applies(cls)(apply)
        return cls

    return bind
