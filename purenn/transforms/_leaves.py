"""Which leaves of the arguments are differentiated, and calling a function with new ones in their places."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from purenn.errors import ArgumentError, GradientError
from purenn.tree._checks import require_function
from purenn.tree._holes import HOLE
from purenn.tree._walk import PARAMETER, Structure, flatten, join, short


class Argument(NamedTuple):
    """One differentiated argument, taken apart.

    Attributes:
        structure: its structure.
        leaves: all its leaves.
        chosen: the positions of the leaves that are differentiated: floating or complex parameters, not frozen.
    """

    structure: Structure
    leaves: list[Any]
    chosen: list[int]

    @property
    def values(self) -> list[Tensor]:
        """The leaves that are differentiated."""
        leaves = self.leaves
        return [leaves[position] for position in self.chosen]

    def rebuilt(self, values: Sequence[Any]) -> Any:
        """The argument with new values for the differentiated leaves."""
        if len(values) == len(self.leaves):
            return optree.tree_unflatten(self.structure.spec, values)
        leaves = list(self.leaves)
        for position, value in zip(self.chosen, values, strict=True):
            leaves[position] = value
        return optree.tree_unflatten(self.structure.spec, leaves)

    def derivative(self, values: Sequence[Any]) -> Any:
        """A tree of the argument's structure with `values` for the differentiated leaves and `HOLE` elsewhere."""
        if len(values) == len(self.leaves):
            return optree.tree_unflatten(self.structure.spec, values)
        leaves: list[Any] = [HOLE] * len(self.leaves)
        for position, value in zip(self.chosen, values, strict=True):
            leaves[position] = value
        return optree.tree_unflatten(self.structure.spec, leaves)


def take_apart(tree: Any) -> Argument:
    """The argument's leaves and which of them are differentiated."""
    leaves, structure = flatten(tree)
    chosen = []
    for position in structure.candidates:
        leaf = leaves[position]
        if isinstance(leaf, Tensor) and (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
            chosen.append(position)
    return Argument(structure, leaves, chosen)


class Problem(NamedTuple):
    """A call of a function, with its differentiated arguments taken apart."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    positions: tuple[int, ...]
    arguments: tuple[Argument, ...]
    single: bool

    @property
    def values(self) -> list[Tensor]:
        """The differentiated leaves of all arguments, in order."""
        if len(self.arguments) == 1:
            return self.arguments[0].values
        return [value for argument in self.arguments for value in argument.values]

    @property
    def rest(self) -> dict[Any, Any]:
        """The arguments that are not differentiated, by position or name."""
        return {n: arg for n, arg in enumerate(self.args) if n not in self.positions} | self.kwargs

    def places_in_rest(self) -> list[str]:
        """Where each tensor in `rest` is, for messages."""
        return [
            f"{name!r}, {join(tuple(path))!r}" if path else repr(name)
            for name, value in self.rest.items()
            for path, leaf in zip(optree.tree_paths(value), optree.tree_leaves(value), strict=True)
            if isinstance(leaf, Tensor)
        ]

    def call(self, values: Sequence[Tensor]) -> Any:
        """The function's result with new differentiated leaves."""
        args = list(self.args)
        for position, argument, part in zip(self.positions, self.arguments, self.split(values), strict=True):
            args[position] = argument.rebuilt(part)
        return self.fn(*args, **self.kwargs)

    def split(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        """A flat sequence, one item for each differentiated leaf, by argument."""
        parts, start = [], 0
        for argument in self.arguments:
            parts.append(values[start : start + len(argument.chosen)])
            start += len(argument.chosen)
        return parts

    def derivative(self, values: Sequence[Any]) -> Any:
        """Such a sequence as trees of the arguments' structures; a tuple of them unless one argument was asked for."""
        parts = zip(self.arguments, self.split(values), strict=True)
        trees = tuple(argument.derivative(part) for argument, part in parts)
        return trees[0] if self.single else trees


def problem(name: str, fn: Callable[..., Any], args: tuple, kwargs: dict, argnums: int | tuple[int, ...]) -> Problem:
    """Take a call apart for the transformation `name`.

    Raises:
        ArgumentError: `fn` is no function, or `argnums` names no positional argument, or one twice.
        GradientError: the arguments have nothing to differentiate.
    """
    require_function(name, fn)
    single = isinstance(argnums, int)
    positions = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(position, int) for position in positions):
        raise ArgumentError(
            f"{name}: argnums must be the number of a positional argument, or several, got {argnums!r}."
        )
    for position in positions:
        if not -len(args) <= position < len(args):
            raise ArgumentError(
                f"{name}: argnums names the positional argument {position}, but the function was called "
                f"with {len(args)}."
            )
    positions = tuple([position % len(args) for position in positions])
    if len(set(positions)) != len(positions) or not positions:
        raise ArgumentError(f"{name}: argnums must name each argument once, got {argnums}.")
    arguments = tuple([take_apart(args[position]) for position in positions])
    require_chosen(name, positions, arguments)
    return Problem(fn, args, kwargs, positions, arguments, single)


def require_chosen(name: str, positions: tuple[int, ...], arguments: tuple[Argument, ...]) -> None:
    """Require that there is something to differentiate.

    Raises:
        GradientError: there is not; it says why.
    """
    if not any(argument.chosen for argument in arguments):
        raise GradientError(_nothing_to_differentiate(name, positions, arguments))


def _nothing_to_differentiate(name: str, positions: tuple[int, ...], arguments: tuple[Argument, ...]) -> str:
    reasons = []
    for position, argument in zip(positions, arguments, strict=True):
        for leaf, value in zip(argument.structure.leaves, argument.leaves, strict=True):
            if not isinstance(value, Tensor):
                why = f"is {short(value)}, no tensor"
            elif leaf.kind != PARAMETER:
                why = f"is a {leaf.kind}"
            elif leaf.frozen:
                why = "is frozen"
            else:
                why = f"is {short(value)}, which has no derivative"
            reasons.append(f"argument {position}{f', {leaf.path!r},' if leaf.path else ''} {why}")
        if not argument.leaves:
            reasons.append(f"argument {position} has no leaves")
    shown = "; ".join(reasons[:6]) + ("; ..." if len(reasons) > 6 else "")
    return (
        f"{name}: there is nothing to differentiate: {shown}. Differentiated are floating-point parameters that are "
        f"not frozen; choose another argument with argnums, cast with pn.tree.to(p, torch.float32), or "
        f"pn.tree.unfreeze(p)."
    )


def tensors_in(*trees: Any) -> list[Tensor]:
    """All tensors among the leaves of trees, in order."""
    return [leaf for tree in trees for leaf in optree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def scalar_output(name: str, value: Any, hint: str = " Return it together with has_aux=True.") -> Tensor:
    """The function's value, if a gradient can be taken of it.

    Args:
        name: of the transformation, for errors.
        value: what the function returned.
        hint: what to do with the rest of a tuple.

    Raises:
        GradientError: it is no real scalar tensor.
    """
    if not isinstance(value, Tensor):
        fix = hint if isinstance(value, tuple) else ""
        raise GradientError(f"{name}: the function must return a scalar tensor, got a {type(value).__name__}.{fix}")
    if value.dim() != 0:
        raise GradientError(
            f"{name}: the function must return a scalar tensor, got {short(value)}. Reduce it with .mean() or .sum(), "
            f"or use pn.jacrev for the derivatives of every element."
        )
    if not value.is_floating_point():
        raise GradientError(
            f"{name}: the function must return a real floating-point scalar, got {short(value)}."
            + (" Take its .real or .abs() first." if value.is_complex() else "")
        )
    return value


def split_aux(name: str, out: Any, has_aux: bool) -> tuple[Any, Any]:
    """The value and the auxiliary output of a function's result.

    Raises:
        GradientError: `has_aux` is set and the result is no pair.
    """
    if not has_aux:
        return out, None
    if not (isinstance(out, tuple) and len(out) == 2):
        raise GradientError(
            f"{name}: with has_aux=True the function must return a pair (value, auxiliary), got a {type(out).__name__}."
        )
    return out


def detached(tree: Any) -> Any:
    """A tree whose tensors have no graph; those that have none already are the same objects."""
    return optree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) and _may_have_graph(x) else x, tree)


def _may_have_graph(x: Tensor) -> bool:
    # A tensor of one example, or with a tangent, does not require grad, whatever is behind it.
    within = torch.compiler.is_compiling() or is_functorch_wrapped_tensor(x) or forward_ad._current_level >= 0
    return within or x.requires_grad


def versions(values: Sequence[Any]) -> list[int]:
    """How often each of some tensors has been written to (-1 where that is not known)."""
    if torch.compiler.is_compiling():
        return [-1] * len(values)
    return [value._version if isinstance(value, Tensor) and not value.is_inference() else -1 for value in values]
