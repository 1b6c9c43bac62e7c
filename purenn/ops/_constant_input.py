"""Convolutions of inputs that nobody differentiates by, images for example, in gradients that are differentiated again.

Such a convolution is linear in its weight, and the gradient by the weight is linear in that by the result: each is the
other's derivative, to any order. torch's rule for second derivatives also computes the one by the input, asked for or
not, which for images takes longer than all the others together.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad
from torch.overrides import has_torch_function_variadic

from purenn._modes import is_autocast, is_differentiated_again, is_reverse_only

_BY_WEIGHT: dict[Any, Callable[..., Tensor]] = {
    F.conv1d: grad.conv1d_weight,
    F.conv2d: grad.conv2d_weight,
    F.conv3d: grad.conv3d_weight,
}


def is_constant_input(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `convolution` is the faster way: for a batch without a gradient, where somebody differentiates again."""
    return (
        is_differentiated_again()
        and not x.requires_grad
        and x.dim() == weight.dim()
        and x.is_floating_point()
        and (bias is None or bias.dtype == weight.dtype)
        and is_reverse_only(x, weight)
        and not has_torch_function_variadic(x, weight)
        and not is_autocast(x)
    )


def convolution(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> Tensor:
    """The convolution of a constant input.

    Args:
        function: torch's convolution over so many dimensions.
        x: the input, for which `is_constant_input` holds.
        weight: the kernel.
        bias: summand of each channel, or None.
        *options: stride, padding, dilation and groups.
    """
    size, by_weight = weight.shape, _BY_WEIGHT[function]
    y = _Linear.apply(
        x, weight, lambda x, w: function(x, w, None, *options), lambda x, g: by_weight(x, size, g, *options)
    )
    return y if bias is None else y.add_(bias.view(-1, *[1] * (x.dim() - 2)))


class _Linear(torch.autograd.Function):
    """A function of a constant and of what it is linear in, and the transposed one."""

    @staticmethod
    def forward(
        ctx: Any,
        constant: Tensor,
        argument: Tensor,
        function: Callable[[Tensor, Tensor], Tensor],
        transposed: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(constant)
        ctx.functions = transposed, function
        return function(constant, argument)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        transposed, function = ctx.functions
        given = *ctx.saved_tensors, *cotangents
        found = _Linear.apply(*given, transposed, function) if is_reverse_only() else transposed(*given)
        return None, found, None, None
