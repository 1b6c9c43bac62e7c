"""Losses of torch whose kernels a transformation cannot see through, by their formulas.

Forward mode over a gradient, the usual way to a product with the Hessian, needs the forward rule of each kernel of the
backward pass. A few losses of `torch.nn.functional` have none, and that of the squared error fails where the target is
constant. The batching rule of some of them fails under two vmaps that batch one of their arguments only.
`purenn.losses` has formulas for them all.
"""

import functools
import inspect
import re
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch._C._functorch import maybe_current_level
from torch.overrides import TorchFunctionMode

from purenn.random import strict

R = TypeVar("R")

# By function of torch, the name of the one in `purenn.losses`: first come the same tensors, then options by name.
_FORMULAS: dict[Any, str] = {
    F.mse_loss: "mse_loss",
    F.huber_loss: "huber_loss",
    F.smooth_l1_loss: "smooth_l1_loss",
    F.soft_margin_loss: "soft_margin_loss",
    F.multi_margin_loss: "multi_margin_loss",
    F.multilabel_margin_loss: "multi_label_margin_loss",
    F.ctc_loss: "ctc_loss",
}
# Those of them that compare elements, and broadcast.
_PAIRED = (F.mse_loss, F.huber_loss, F.smooth_l1_loss)
# What torch says of their kernels, and what has become of it on the way.
_REFUSED = re.compile(
    r"ZeroTensors are immutable|"
    r"use forward AD with (huber|soft_margin|multi_margin|multilabel_margin|_ctc)_loss\w* that does not support it"
)


def with_formulas(run: Callable[[], R]) -> R:
    """The result of what transforms a function; run once more, with formulas, if a loss is in its way."""
    try:
        return run()
    except RuntimeError as error:
        # A gradient within has made it an error of ours.
        refused = any(_REFUSED.search(str(text)) for text in (error, error.__cause__))
        if not (refused or _is_of_a_pair(error)):
            raise
    with strict(enabled=False), _Formulas():
        return run()


def _is_of_a_pair(error: BaseException) -> bool:
    if maybe_current_level() is None or "must match the size of tensor" not in str(error):
        return False
    codes = [loss.__code__ for loss in _PAIRED]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


class _Formulas(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func not in _FORMULAS:
            return func(*args, **(kwargs or {}))
        signature = _signature(func)
        given = signature.bind(*args, **(kwargs or {})).arguments
        options = {name: value for name, value in given.items() if value is not None}
        if "reduce" in options or "size_average" in options:  # torch's former names for the reduction
            return func(*args, **(kwargs or {}))
        needed = [name for name, parameter in signature.parameters.items() if parameter.default is parameter.empty]
        tensors: Any = [options.pop(name) for name in needed]
        if func in _PAIRED:
            tensors = torch.broadcast_tensors(*tensors)
        from purenn import losses

        return getattr(losses, _FORMULAS[func])(*tensors, **options)


_signature = functools.cache(inspect.signature)
