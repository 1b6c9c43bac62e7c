"""When torch's fused kernels may serve, and what they lack.

Some kernels of losses have no batching rule, no forward mode, no second derivative, or no derivative with respect to a
weight. Each such loss is therefore written in plain operations too, and the kernel runs only where nobody can ask for
what it lacks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purenn._modes import is_plain


def may_fuse(prediction: Tensor, target: Tensor, *weights: Tensor | None) -> bool:
    """Whether nothing transforms or traces, there are values, and no weight, which has no derivative, requires one."""
    for weight in weights:
        if weight is not None and weight.requires_grad:
            return False
    return is_plain(prediction, target) and not prediction.is_meta


class Kernel(NamedTuple):
    """A fused loss that torch can differentiate only once.

    Attributes:
        forward: gives, for the prediction, the loss and what the backward pass needs.
        backward: gives the gradient of the prediction, from that of the loss, the prediction, the loss, and what else
            `forward` gave.
    """

    forward: Callable[[Tensor], tuple[Tensor, ...]]
    backward: Callable[..., Tensor]


def differentiable_twice(kernel: Kernel, formula: Callable[[Tensor], Tensor], prediction: Tensor) -> Tensor:
    """The kernel's loss, with its backward pass, unless that is to be differentiated again.

    Then the derivative of `formula`, the same loss in plain operations, takes its place.
    """
    if not (prediction.requires_grad and torch.is_grad_enabled()):
        return kernel.forward(prediction)[0]
    return _KernelFirst.apply(prediction, kernel, formula)


class _KernelFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: Tensor, kernel: Kernel, formula: Callable[[Tensor], Tensor]) -> Tensor:
        loss, *kept = kernel.forward(prediction)
        ctx.kernel, ctx.formula = kernel, formula
        ctx.save_for_backward(prediction, loss, *kept)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        prediction, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            loss = ctx.formula(prediction)
            gradient = torch.autograd.grad(loss, prediction, grad_outputs, create_graph=True)[0]
        else:
            gradient = ctx.kernel.backward(*grad_outputs, prediction, *kept)
        return gradient, None, None
