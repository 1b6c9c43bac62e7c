"""Norms of torch whose derivatives go wrong without a word, by those of `purenn.ops`.

Derivatives of `torch.nn.functional`'s batch, instance and layer norm are wrong under torch.func where one is taken
under a vmap and another outside of it, where one is a forward derivative, and from the third order on. A function that
is differentiated so gets norms that know of it.
"""

from collections.abc import Callable, Sequence
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


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training == (running_mean is not None):  # to update statistics, or to use none, is what torch refuses
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return ops.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)[0]


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if use_input_stats == (running_mean is not None):
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return ops.instance_norm(input, running_mean, running_var, weight, bias, eps=eps)[0]


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return ops.layer_norm(input, tuple(normalized_shape), weight, bias, eps=eps)


def _batch_norm_by_position(input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> Tensor:
    return _batch_norm(input, mean, var, weight, bias, *options[:3])


def _instance_norm_by_position(input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> Tensor:
    return _instance_norm(input, mean, var, weight, bias, *options[:3])


_RIGHT: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.batch_norm: _batch_norm_by_position,
    torch.instance_norm: _instance_norm_by_position,
    torch.layer_norm: _layer_norm,
}


class _Norms(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        own = _RIGHT.get(func)
        return func(*args, **(kwargs or {})) if own is None else own(*args, **(kwargs or {}))
