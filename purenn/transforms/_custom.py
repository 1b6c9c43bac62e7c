"""What functions with derivative rules of their own share.

Both rules become a `torch.autograd.Function` whose batching rule torch derives from the functions themselves, so they
work under vmap, under vmap of a gradient and twice differentiated without a line about batching.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

import optree
from torch import Tensor

from purenn.errors import GradientError

P = ParamSpec("P")
R = TypeVar("R")


class Rule(Generic[P, R]):
    """What the two kinds of functions share: calling a function of tensors with the leaves of trees."""

    kind: str

    def __init__(self, fn: Callable[P, R]) -> None:
        functools.update_wrapper(cast(Callable[..., Any], self), fn)
        self._fn = fn

    @property
    def name(self) -> str:
        """That of the function, for errors."""
        return getattr(self._fn, "__name__", "the function")

    def frame(self, args: tuple, kwargs: dict) -> tuple["Frame", list[Tensor]]:
        """The call's structure and its tensors."""
        if kwargs:
            raise GradientError(
                f"{self.kind}: '{self.name}' was called with keyword arguments ({', '.join(kwargs)}), for which the "
                f"rule has no place: pass them by position."
            )
        leaves, spec = optree.tree_flatten(cast(Any, args))
        frame = Frame(leaves, [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)], spec)
        return frame, [leaves[place] for place in frame.places]


class Frame:
    """One call: the arguments' structure, and what the rule has made that is no tensor."""

    def __init__(self, leaves: list[Any], places: list[int], spec: optree.PyTreeSpec) -> None:
        self.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places, self.spec = places, spec
        self.out_spec: Any = None
        self.rest_spec: Any = None
        self.rest: list[Any] = []

    def args(self, tensors: Any) -> tuple:
        """The arguments with other tensors in them."""
        leaves = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return cast(tuple, optree.tree_unflatten(self.spec, leaves))
