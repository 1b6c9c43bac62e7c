"""What functions with derivative rules of their own share.

Both rules become a `torch.autograd.Function` whose batching rule torch derives from the functions themselves, so they
work under vmap, under vmap of a gradient and twice differentiated without a line about batching.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

import optree
import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

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

    def needs_no_rule(self, tensors: list[Tensor], *, reverse: bool) -> bool:
        """Whether torch.compile traces a call that nobody differentiates, so that the function itself will do.

        Raises:
            GradientError: it would lose the rule. It knows none but that of the reverse mode, and not within
                transformations of torch.func.
        """
        if not is_dynamo_compiling():
            return False
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if torch._C._are_functorch_transforms_active() or (wanted and not reverse):
            raise GradientError(
                f"{self.kind}: within torch.compile a transformation would differentiate the computation of "
                f"'{self.name}' instead of using its rule. Compile with pn.jit, which knows the rule."
            )
        return not wanted


class Frame:
    """One call: the arguments' structure, and what the rule has made that is no tensor."""

    def __init__(self, leaves: list[Any], places: list[int], spec: optree.PyTreeSpec) -> None:
        self.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places, self.spec = places, spec
        self.out_spec: Any = None
        self.rest_spec: Any = None
        self.rest: list[Any] = []

    def again(self) -> "Frame":
        """Another call with the same structure."""
        new = object.__new__(Frame)
        new.constants, new.places, new.spec = self.constants, self.places, self.spec
        return new

    def args(self, tensors: Any) -> tuple:
        """The arguments with other tensors in them."""
        leaves = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return cast(tuple, optree.tree_unflatten(self.spec, leaves))
