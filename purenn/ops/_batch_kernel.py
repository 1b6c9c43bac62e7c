"""Batch norm of large batches on the CPU, by the kernels that are fast.

Where channels come first in memory, torch's kernel takes the statistics one element after another, which is most of
its time. Here they are sums and products of rows, which use vectors. The rest, and all derivatives, are torch's.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing

# Below either of them torch's kernel is the faster one.
_FEWEST_ELEMENTS = 2**17
_FEWEST_POSITIONS = 2**8
# How many elements each thread centres at a time: they stay in the processor's cache.
_ELEMENTS_AT_A_TIME = 2**18

_backward = torch.ops.aten.native_batch_norm_backward.default


def is_large(x: Tensor, *affine: Tensor | None) -> bool:
    """Whether `large_batch_norm` is the faster way for an input that is computed on at once."""
    return (
        x.is_cpu
        and x.dim() > 2
        and x.numel() >= max(_FEWEST_ELEMENTS, _FEWEST_POSITIONS * x.shape[0] * x.shape[1])
        and x.dtype in (torch.float32, torch.float64)
        and all(parameter is None or parameter.dtype == x.dtype for parameter in affine)
        and x.is_contiguous()
        and forward_ad._current_level < 0
        and not is_tracing()  # what is traced shall hold for other sizes
    )


def large_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised batch, with the mean and the biased variance of its channels, through which no gradient flows."""
    return _BatchNorm.apply(x, weight, bias, eps)


class _BatchNorm(torch.autograd.Function):
    # Without `setup_context`, which costs three times as much in each call and serves torch.func only.
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = _statistics(x)
        y = _normalised(x, weight, bias, mean, var, eps)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        return *_backward(gradients[0], x, weight, None, None, mean, inverse_std, True, ctx.eps, wanted), None


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    count = x.numel() // x.shape[1]
    mean = x.flatten(2).sum(2).sum(0) / count
    one = torch.ones_like(mean)

    def squares(part: Tensor) -> Tensor:
        centred = _normalised(part, None, None, mean, one, 0.0).flatten(0, 1).flatten(1).unsqueeze(1)
        return torch.bmm(centred, centred.transpose(1, 2)).view(part.shape[:2]).sum(0)

    examples = max(1, _ELEMENTS_AT_A_TIME * torch.get_num_threads() // x[0].numel())
    return mean, torch.stack([squares(part) for part in x.split(examples)]).sum(0) / count
