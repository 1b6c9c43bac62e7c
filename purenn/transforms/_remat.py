"""Rematerialisation: trading time for memory by computing a part of a function again in its backward pass."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.random import strict

P = ParamSpec("P")
R = TypeVar("R")

_aten = torch.ops.aten
_PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.convolution.default,
        _aten.dot.default,
        _aten.mv.default,
    }
)


def remat(fn: Callable[P, R], *, policy: str | None = None) -> Callable[P, R]:
    """A function that keeps its inputs for the backward pass instead of its intermediate values.

    They are computed again when the gradient needs them, with the same keys and so the same draws. It saves memory
    under `pn.grad` at the outermost level and under plain autograd, forward functions that close over parameters
    included. Inside a transformation of torch.func (vmap, jvp, a gradient of a gradient) and inside `pn.jit` the
    function runs as it is: right, but without the saving, since torch.func keeps every intermediate value itself and a
    compiler decides for itself what to keep.

    Args:
        fn: a pure function; usually one layer or a few of a deep stack.
        policy: "products" keeps the results of matrix products and convolutions, and computes only the rest again; None
            keeps nothing.

    Raises:
        ArgumentError: an unknown policy.

    Example:
        >>> import torch, purenn as pn
        >>> f = pn.remat(lambda w, x: torch.tanh(w * x).exp())
        >>> pn.grad(lambda w: f(w, torch.tensor(0.0)))(torch.tensor(2.0))
        tensor(0.)
    """
    if policy not in (None, "products"):
        raise ArgumentError(f"remat: policy must be 'products' or None, got {policy!r}.")
    contexts = _keeping_products if policy == "products" else _keeping_nothing

    @functools.wraps(fn)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not is_plain() or not torch.is_grad_enabled():
            return fn(*args, **kwargs)
        return checkpoint(fn, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return recomputed


# The contexts of the forward pass and of its repetition. Keys are used again there, on purpose.


def _keeping_nothing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), strict(enabled=False)


def _keeping_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    first, again = create_selective_checkpoint_contexts(_keep_products)
    return first, _both(again, strict(enabled=False))


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
