"""What functions with derivative rules of their own share.

Both rules become a `torch.autograd.Function` whose batching rule torch derives from the functions themselves, so they
work under vmap, under vmap of a gradient and twice differentiated without a line about batching.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, cast

import attrs
import optree
import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from purenn.errors import GradientError
from purenn.transforms._operation import differentiable, may_be_differentiated
from purenn.transforms._own_rule import belongs_to_graph
from purenn.tree._walk import short

P = ParamSpec("P")
R = TypeVar("R")


class _Open(threading.local):
    def __init__(self) -> None:
        self.rules: list[object] = []


# A rule may use its own function, whose rule is then traced for the next derivative, and so on: so often.
_open = _Open()
_DEPTH = 2


class Rule(Generic[P, R]):
    """What the two kinds of functions share: calling a function of tensors with the leaves of trees."""

    kind: str

    def __init__(self, fn: Callable[P, R]) -> None:
        functools.update_wrapper(cast(Callable[..., Any], self), fn)
        self._fn = fn
        self._self = object()  # what copies of this one, with other tensors in them, have in common

    @property
    def name(self) -> str:
        """That of the function, for errors."""
        return getattr(self._fn, "__name__", "the function")

    @property
    def title(self) -> str:
        """The kind and the name, for errors."""
        return f"{self.kind} '{self.name}'"

    def frame(self, args: tuple, kwargs: dict) -> tuple["Frame", list[Tensor]]:
        """The call's structure and its tensors."""
        if kwargs:
            raise GradientError(
                f"{self.kind}: '{self.name}' was called with keyword arguments ({', '.join(kwargs)}), for which the "
                f"rule has no place: pass them by position."
            )
        leaves, spec = optree.tree_flatten(cast(Any, args))
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        return Frame.of(leaves, places, spec), [leaves[place] for place in places]

    def outputs(self, frame: "Frame", output: Any, tensors: Any) -> list[Tensor]:
        """The leaves of what the function returned.

        Raises:
            GradientError: one is no tensor.
        """
        leaves, frame.made.out_spec = optree.tree_flatten(output)
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise GradientError(f"{self.kind}: '{self.name}' must return tensors, got {short(leaf)}.")
        return apart(leaves, tensors)

    def is_traced(self, tensors: list[Tensor]) -> bool:
        """Whether the rule has to be a part of the graph that is traced, and can be."""
        return belongs_to_graph(tensors) and _open.rules.count(self._self) <= _DEPTH

    def within(self, rule: Callable[..., Any], *args: Any) -> Any:
        """What the rule returns, while it is traced."""
        _open.rules.append(self._self)
        try:
            return rule(*args)
        finally:
            _open.rules.pop()

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


class Made:
    """What a run of the function has made that is no tensor."""

    out_spec: Any
    outputs: list[tuple[torch.Size, torch.dtype]]
    rest_spec: Any
    rest: list[Any]


@attrs.define(eq=False)
class Frame:
    """One call: the arguments' leaves that are no tensors, where the tensors are, and the structure."""

    constants: list[Any]
    places: list[int]
    spec: optree.PyTreeSpec
    made: Made

    @classmethod
    def of(cls, leaves: list[Any], places: list[int], spec: optree.PyTreeSpec) -> "Frame":
        """Of all leaves, those at `places` being tensors."""
        return cls([None if isinstance(leaf, Tensor) else leaf for leaf in leaves], places, spec, Made())

    def again(self) -> "Frame":
        """Another call with the same arguments."""
        return attrs.evolve(self, made=Made())

    def args(self, tensors: Any) -> tuple:
        """The arguments with other tensors in them."""
        leaves = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return cast(tuple, optree.tree_unflatten(self.spec, leaves))


def apart(results: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Results of which none is an argument: that would be an output that is a view of an input."""
    # Not by id: torch 2.11's dynamo knows none of a tensor that is made in between.
    return [result.clone() if any(result is tensor for tensor in tensors) else result for result in results]


def is_differentiated(tensors: Sequence[Tensor]) -> bool:
    """Whether a derivative with respect to one of some tensors may be asked for, in either mode."""
    levels = get_interpreter_stack() or ()
    if may_be_differentiated(tensors) or any(level.key() == TransformType.Jvp for level in levels):
        return True
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensors[n]).tangent is not None for n in differentiable(tensors)
    )


def batched_alike(tensors: list[Any], beside: Sequence[Tensor | None]) -> list[Any]:
    """Tensors of which each is batched by every vmap that batches one of them, or one of those beside them."""
    if is_dynamo_compiling() or peek_interpreter_stack() is None:
        return tensors
    levels = [_batched_by(tensor) for tensor in tensors]
    wanted = frozenset().union(*levels, *map(_batched_by, beside))
    chosen: Any = None
    for tensor in (*tensors, *beside):
        if tensor is not None and _batched_by(tensor):
            batch = tensor.new_zeros((), dtype=torch.bool)
            chosen = batch if chosen is None else chosen | batch
    return [
        tensor if tensor is None or own == wanted else torch.where(chosen, tensor, tensor)
        for tensor, own in zip(tensors, levels, strict=True)
    ]


def _batched_by(tensor: Tensor | None) -> frozenset[int]:
    levels = set()
    while tensor is not None and is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            levels.add(maybe_get_level(tensor))
        tensor = get_unwrapped(tensor)
    return frozenset(levels)


def outline(tree: Any) -> str:
    """A tree with what its leaves are like, for errors."""
    return repr(optree.tree_map(lambda leaf: _Text(short(leaf)), tree))


class _Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
