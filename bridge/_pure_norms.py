"""Normalisation while a module runs purely: new running statistics take the place of the old ones."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bridge._pure_context import Context, Handler
from purenn import ops
from purenn._modes import is_plain
from purenn.ops._statistics import all_space, one_space

_torch: Any = F


def _batch_norm(
    context: Context,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if is_plain():
        if training:
            context.require_free(running_mean, running_var)
        statistics = _detached(running_mean), _detached(running_var)
        y = F.batch_norm(one_space(input), *statistics, weight, bias, training, momentum, eps)
        return all_space(y, input)
    if training:
        momentum = _averaging(context, momentum)
    y, new = ops.batch_norm(input, running_mean, running_var, weight, bias, train=training, momentum=momentum, eps=eps)
    if training:
        # Only now: who records the operations has more to say about an input of a single value.
        _torch._verify_batch_size(input.size())
    _adopt(context, (running_mean, running_var), new)
    return y


def _detached(statistic: Tensor | None) -> Tensor | None:
    # On the same memory, into which the kernels write; they refuse what requires grad.
    return statistic.detach() if statistic is not None and statistic.requires_grad else statistic


def _averaging(context: Context, momentum: float) -> float | Tensor:
    # With momentum=None torch's module makes a number of its counter, which may be one for each of several models.
    module: Any = context.running_module()
    if getattr(module, "momentum", 0.0) is None and getattr(module, "num_batches_tracked", None) is not None:
        count = context.writes.latest(module.num_batches_tracked)
        return count.to(torch.get_default_dtype()).reciprocal()
    return momentum


def _batch_norm_of_torch(
    context: Context,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _batch_norm(context, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    context: Context,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if is_plain():
        if use_input_stats:
            context.require_free(running_mean, running_var)
        options: Any = weight, bias, use_input_stats, momentum, eps
        y = F.instance_norm(one_space(input), _detached(running_mean), _detached(running_var), *options)
        return all_space(y, input)
    if use_input_stats:
        _torch._verify_spatial_size(input.size())
    y, new = ops.instance_norm(
        input, running_mean, running_var, weight, bias, train=use_input_stats, momentum=momentum, eps=eps
    )
    _adopt(context, (running_mean, running_var), new)
    return y


def _adopt(context: Context, old: tuple[Tensor | None, ...], new: tuple[Tensor | None, ...]) -> None:
    for before, after in zip(old, new, strict=True):
        if before is not None and after is not None and after is not before:
            context.writes.put(before, after)


def _layer_norm(
    context: Context,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return ops.layer_norm(input, tuple(normalized_shape), weight, bias, eps=eps)


def _group_norm(
    context: Context,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    return ops.group_norm(input, num_groups, weight, bias, eps=eps)


def _rms_norm(
    context: Context, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return ops.rms_norm(input, tuple(normalized_shape), weight, eps=eps)


HANDLERS: dict[Any, Handler] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _batch_norm_of_torch,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
}
