"""Norms of torch whose derivatives go wrong without a word, by those of `purenn.ops`.

Derivatives of `torch.nn.functional`'s batch, instance and layer norm are wrong under torch.func where one is taken
under a vmap and another outside of it, where one is a forward derivative, and from the third order on. A function that
is differentiated so gets norms that know of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_functorch_wrapped_tensor,
)
from torch.overrides import TorchFunctionMode

from purenn import ops
from purenn.transforms._lean import lean_depth
from purenn.transforms._leaves import Problem, tensors_in
from purenn.transforms._norm_arguments import named


def with_right_norms(call: Problem, values: Sequence[Tensor]) -> Any:
    """The result of a call with new differentiated leaves, computed for a derivative, with the norms that are right."""
    if not _go_wrong(call):
        return call.call(values)
    with _Norms():
        return call.call(values)


def _go_wrong(call: Problem) -> bool:
    if torch.compiler.is_compiling():
        return False
    kinds = [level.key() for level in get_interpreter_stack() or ()]
    derivatives = [n for n, kind in enumerate(kinds) if kind in (TransformType.Grad, TransformType.Jvp)]
    known = lean_depth() + len(derivatives)
    if not kinds or known > 2:
        return known > 2
    forward, batched = TransformType.Jvp in kinds, TransformType.Vmap in kinds
    if known == 2 and (forward or (batched and (lean_depth() or TransformType.Vmap in kinds[derivatives[0] :]))):
        return True
    # By plain autograd, somebody outside of all this may take one more.
    around = any(_innermost(tensor).requires_grad for tensor in tensors_in(*call.args, *call.kwargs.values()))
    return around and (known == 2 or forward or batched)


def _innermost(tensor: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


class _Norms(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = named(func, args, kwargs or {})
        if given is None:
            return func(*args, **(kwargs or {}))
        x, eps = given["input"], given.get("eps", 1e-5)
        weight, bias = given.get("weight"), given.get("bias")
        if "normalized_shape" in given:
            return ops.layer_norm(x, tuple(given["normalized_shape"]), weight, bias, eps=eps)
        running = given.get("running_mean"), given.get("running_var")
        by_batch = func in _OF_BATCHES
        own = given.get("training", False) if by_batch else given.get("use_input_stats", True)
        if own == (running[0] is not None):  # to update statistics, or to use none, is what torch refuses
            return func(*args, **(kwargs or {}))
        return (ops.batch_norm if by_batch else ops.instance_norm)(x, *running, weight, bias, eps=eps)[0]


_OF_BATCHES = (F.batch_norm, torch.batch_norm)
