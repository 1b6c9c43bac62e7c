"""Rematerialisation: trading time for memory by computing a part of a function again in its backward pass."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.random import strict
from purenn.transforms._lean import surroundings
from purenn.tree._checks import require_function

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
    included. Inside a transformation of torch.func (vmap, jvp, a gradient of a gradient), around one, and inside
    `pn.jit` the function runs as it is: right, but without the saving, since torch.func keeps every intermediate value
    itself and a compiler decides for itself what to keep.

    Args:
        fn: a pure function; usually one layer or a few of a deep stack.
        policy: "products" keeps the results of matrix products and convolutions, and computes only the rest again; None
            keeps nothing. What it keeps serves one backward pass of plain autograd, and no gradient that is taken
            within the function: they compute all of it again.

    Raises:
        ArgumentError: an unknown policy.

    Example:
        >>> import torch, purenn as pn
        >>> f = pn.remat(lambda w, x: torch.tanh(w * x).exp())
        >>> pn.grad(lambda w: f(w, torch.tensor(0.0)))(torch.tensor(2.0))
        tensor(0.)
    """
    require_function("remat", fn)
    if policy not in (None, "products"):
        raise ArgumentError(f"remat: policy must be 'products' or None, got {policy!r}.")
    contexts = _keeping_products if policy == "products" else _keeping_nothing

    transforms_inside = False

    @functools.wraps(fn)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        nonlocal transforms_inside
        if transforms_inside or not is_plain() or not torch.is_grad_enabled():
            return fn(*args, **kwargs)
        try:
            return checkpoint(fn, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        except RuntimeError as error:
            # torch.func refuses to run within what torch's checkpoint is made of; a transformation inside explains it.
            if not any("support saved tensor hooks" in str(text) for text in (error, error.__cause__)):
                raise
            transforms_inside = True
        with strict(enabled=False):
            return fn(*args, **kwargs)

    return recomputed


# The contexts of the forward pass and of its repetition. Keys are used again there, on purpose.


def _keeping_nothing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _Again()


def _keeping_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    first, again = create_selective_checkpoint_contexts(_keep_products)
    return first, _Again(first, again)


class _Again(AbstractContextManager[None]):
    """The context of a repetition. A second derivative repeats the function twice, so it can be entered again.

    Args:
        first: the mode of the forward pass, if one keeps values there.
        kept: that of the repetition that uses them up.
    """

    def __init__(self, first: TorchDispatchMode | None = None, kept: TorchDispatchMode | None = None) -> None:
        self._first = first
        self._kept = kept
        self._open: list[ExitStack] = []
        # A gradient within the function is taken as it was, or other values than those would be kept.
        self._around = surroundings()

    def __enter__(self) -> None:
        stack = ExitStack()
        # A gradient within the function repeats it during the forward pass, in which nothing is complete.
        running = self._first in _get_current_dispatch_mode_stack()
        # There was no mode around the forward pass either: with one, functions within would not be recomputed.
        stack.enter_context(_disable_current_modes())
        if self._first is not None:
            kept = None if running else self._kept
            stack.enter_context(kept or _Computing())
            self._kept = None if kept else self._kept
        stack.enter_context(self._around())
        stack.enter_context(strict(enabled=False))
        self._open.append(stack)

    def __exit__(self, *error: Any) -> bool:
        return bool(self._open.pop().__exit__(*error))


class _Computing(TorchDispatchMode):
    # With a mode as in the forward pass, functions that look for one (jitted ones) run as they did there.
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return func(*args, **(kwargs or {}))


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
