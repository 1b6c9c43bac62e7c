"""Gradients with respect to whole models."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

import optree
import torch
from torch import Tensor

from purenn.random import strict
from purenn.transforms._closures import Closures
from purenn.transforms._lean import lean_depth, lean_value_and_grad, outermost, wants_outer_graph
from purenn.transforms._leaves import Problem, problem, scalar_output, split_aux, tensors_in, versions
from purenn.transforms._nested import can_nest, nested_value_and_grad
from purenn.transforms._norm_formulas import with_right_norms
from purenn.transforms._translate import refuse_writes, translated

A = TypeVar("A")
X = TypeVar("X")
P = ParamSpec("P")


@overload
def grad(fn: Callable[Concatenate[A, P], Tensor], argnums: Literal[0] = 0) -> Callable[Concatenate[A, P], A]: ...
@overload
def grad(
    fn: Callable[Concatenate[A, P], tuple[Tensor, X]], argnums: Literal[0] = 0, *, has_aux: Literal[True]
) -> Callable[Concatenate[A, P], tuple[A, X]]: ...
@overload
def grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False
) -> Callable[..., Any]: ...
def grad(fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False) -> Callable[..., Any]:
    """The gradient of a scalar function with respect to whole models.

    Differentiated are the floating (or complex) parameters that are not frozen. The result has the argument's
    structure, with `pn.tree.HOLE` in the place of buffers, integers and frozen leaves, and zeros for parameters that
    the value does not depend on; ``pn.tree.map(lambda w, g: w - 0.1 * g, p, grads)`` keeps such leaves as they are.

    Args:
        fn: returns a real scalar tensor, or ``(scalar, auxiliary)`` with `has_aux`.
        argnums: the positional argument to differentiate, or several.
        has_aux: whether `fn` returns an auxiliary output (any tree).

    Returns:
        A function of the same arguments that returns the gradients: a tree, or a tuple of trees if `argnums` is a
        tuple; with `has_aux` the pair ``(gradients, auxiliary)``.

    Raises:
        GradientError: nothing to differentiate, or the value is no real scalar.
        MutationError: `fn` writes into its arguments.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> pn.grad(lambda p: p(torch.ones(3)).sum())(Linear.init(pn.random.key(0), 3, 2)).bias
        tensor([1., 1.])
    """
    both = _differentiate("grad", fn, argnums, has_aux)

    @functools.wraps(fn)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        _, aux, gradients = both(args, kwargs)
        return (gradients, aux) if has_aux else gradients

    return gradient


@overload
def value_and_grad(
    fn: Callable[Concatenate[A, P], Tensor], argnums: Literal[0] = 0
) -> Callable[Concatenate[A, P], tuple[Tensor, A]]: ...
@overload
def value_and_grad(
    fn: Callable[Concatenate[A, P], tuple[Tensor, X]], argnums: Literal[0] = 0, *, has_aux: Literal[True]
) -> Callable[Concatenate[A, P], tuple[tuple[Tensor, X], A]]: ...
@overload
def value_and_grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False
) -> Callable[..., Any]: ...
def value_and_grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """As `grad`, but returning ``(value, gradients)``, with `has_aux` ``((value, auxiliary), gradients)``."""
    both = _differentiate("value_and_grad", fn, argnums, has_aux)

    @functools.wraps(fn)
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        value, aux, gradients = both(args, kwargs)
        return ((value, aux) if has_aux else value), gradients

    return value_and_gradient


def _differentiate(
    name: str, fn: Callable[..., Any], argnums: int | tuple[int, ...], has_aux: bool
) -> Callable[[tuple, dict], tuple[Tensor, Any, Any]]:
    closures = Closures()

    return lambda args, kwargs: solved(name, problem(name, fn, args, kwargs, argnums), has_aux, closures)


def solved(name: str, call: Problem, has_aux: bool, closures: Closures) -> tuple[Tensor, Any, Any]:
    """Value, auxiliary output and gradients.

    Args:
        name: of the transformation, for errors.
        call: what is differentiated.
        has_aux: whether the function has an auxiliary output.
        closures: what is known of the function's.
    """
    others = [
        (f"{position}, {leaf.path!r}" if leaf.path else str(position), value)
        for position, argument in zip(call.positions, call.arguments, strict=True)
        if len(argument.chosen) < len(argument.leaves)
        for leaf, value in zip(argument.structure.leaves, argument.leaves, strict=True)
        if isinstance(value, Tensor)
    ]
    rest = tensors_in(*call.rest.values())
    before, before_rest = versions([value for _, value in others]), versions(rest)
    with translated(name):
        lean = outermost() and not wants_outer_graph(call, rest)
        done = lean_value_and_grad(name, call, has_aux, closures) if lean else False
        if isinstance(done, bool):
            # A function that has been run in vain uses its keys again, which is no fault of its own.
            with strict(enabled=False) if done else contextlib.nullcontext():
                if can_nest():
                    run = call.call if lean_depth() < 2 else functools.partial(with_right_norms, call)
                    done = nested_value_and_grad(name, run, call.values, has_aux)
                else:
                    done = _by_functorch(name, call, has_aux)
        value, aux, gradients = done
    refuse_writes(name, [path for path, _ in others], before, versions([value for _, value in others]))
    if versions(rest) != before_rest:
        refuse_writes(name, call.places_in_rest(), before_rest, versions(rest))
    return value, aux, call.derivative(gradients)


def _by_functorch(name: str, call: Problem, has_aux: bool) -> tuple[Tensor, Any, list[Tensor]]:
    # torch.func wants tensors only as auxiliary output: the rest of that tree waits here.
    shape: dict[str, Any] = {}

    def flat(values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        value, aux = split_aux(name, with_right_norms(call, values), has_aux)
        leaves, shape["spec"] = optree.tree_flatten(aux)
        shape["leaves"] = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return scalar_output(name, value), [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    gradients, (value, tensors) = torch.func.grad_and_value(flat, has_aux=True)(call.values)
    rest = iter(tensors)
    leaves = [next(rest) if leaf is None else leaf for leaf in shape["leaves"]]
    return value, optree.tree_unflatten(shape["spec"], leaves), gradients
