"""Finding the layer that first makes a NaN or an infinity, forward or backward."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import optree
import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from purenn._modes import is_without_values
from purenn.errors import NumericsError, TransformError
from purenn.tree._applies import binding_of
from purenn.tree._fields import is_container
from purenn.tree._select import select
from purenn.tree._walk import Entries, join, node_at, quoted, short
from purenn.tree._watch import unwatched, watched, watching

P = ParamSpec("P")
R = TypeVar("R")


def check_numerics(fn: Callable[P, R]) -> Callable[P, R]:
    """A function that raises at the first layer whose output, or the gradient of whose output, is not finite.

    All layers in the positional arguments are watched, inner ones before the outer ones that contain them, and then the
    function's own result, for what is computed outside of layers. It works
    under gradients, vmap and their compositions, at the price of reading every output: a tool for finding faults.

    Args:
        fn: a function of models and other arguments.

    Raises:
        NumericsError: when called, or in its backward pass: naming the layer's path, or the function.
        TransformError: when called: inside `pn.jit`, where there are no values.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Lambda, Linear, Sequential, sequential
        >>> p = Sequential.of(Linear(torch.eye(2), None), Lambda(torch.log))
        >>> pn.check_numerics(sequential)(p, torch.tensor([1.0, -1.0]))
        Traceback (most recent call last):
        ...
        purenn.errors.NumericsError: check_numerics: the output of 'layers.1' (Lambda), f32[2], has 1 NaN and 0
        infinities.
    """

    @functools.wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_without_values():
            raise TransformError(
                "check_numerics: a traced function has no values to check. Check the function itself, outside of jit."
            )
        classes: dict[str, str] = {}
        marked = []
        for arg in args:
            layers = _layers_in(arg)
            classes |= {join(place): kind for place, kind in layers.items()}
            marked.append(watched(arg, set(layers)) if layers else arg)

        def watcher(path: str, output: Any) -> Any:
            return _all_checked(output, f"{quoted(path)} ({classes[path]})")

        call: Callable[..., Any] = fn
        with watching(watcher):
            result = call(*marked, **kwargs)
        return _all_checked(unwatched(result), "the function")

    return checked


def _layers_in(tree: Any) -> dict[Entries, str]:
    found = {}
    for place in select(tree).instances(object).entries:
        node = node_at(tree, place)
        if is_container(node) and binding_of(node) is not None:
            found[place] = type(node).__name__
    return found


def _all_checked(output: Any, label: str) -> Any:
    return optree.tree_map(lambda leaf: _checked(leaf, label), output)


def _checked(leaf: Any, label: str) -> Any:
    if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf
    _require_finite(leaf, f"the output of {label}")
    return _Finite.apply(leaf, label)


def _require_finite(tensor: Tensor, what: str) -> None:
    values = tensor
    while is_functorch_wrapped_tensor(values):
        values = get_unwrapped(values)
    values = values.detach()
    if values.isfinite().all():
        return
    nans, infinities = int(values.isnan().sum()), int(values.isinf().sum())
    raise NumericsError(f"check_numerics: {what}, {short(tensor)}, has {nans} NaN and {infinities} infinities.")


class _Finite(torch.autograd.Function):
    """The identity, whose gradient is checked on its way back."""

    @staticmethod
    def forward(x: Tensor, label: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.label = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        _require_finite(gradient, f"the gradient of the output of {ctx.label}")
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tangent.view_as(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, label: str) -> tuple[Any, int]:  # pyright: ignore
        return _Finite.apply(x, label), in_dims[0]
