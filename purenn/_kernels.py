"""When torch's fused kernels may serve, and what they lack.

Some kernels have no batching rule, no forward mode or no second derivative. What they compute is therefore written in
plain operations too, and the kernel runs only where nobody can ask for what it lacks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from purenn._modes import is_plain


def may_use_kernels(*tensors: Tensor) -> bool:
    """Whether operations on plain tensors run at once, and are differentiated in reverse if at all."""
    return is_plain(*tensors) and forward_ad._current_level < 0


class Kernel(NamedTuple):
    """A fused function of one tensor that torch can differentiate only once.

    Attributes:
        forward: gives the result, and what the backward pass needs beside the argument.
        backward: gives the gradient of the argument, from that of the result, the argument, and what `forward` kept.
    """

    forward: Callable[[Tensor], tuple[Tensor, ...]]
    backward: Callable[..., Tensor]


def differentiable_twice(kernel: Kernel, formula: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The kernel's result, with its backward pass, unless that is to be batched or differentiated again.

    Then the derivative of `formula`, the same function in plain operations, takes its place.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return kernel.forward(x)[0]
    return _KernelFirst.apply(x, kernel, formula)


class _KernelFirst(torch.autograd.Function):
    # Without `setup_context`, which costs three times as much in each call and serves torch.func only.
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Kernel, formula: Callable[[Tensor], Tensor]) -> Tensor:
        y, *kept = kernel.forward(x)
        ctx.kernel, ctx.formula = kernel, formula
        ctx.save_for_backward(x, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, *kept = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if again or not is_plain(*gradients):
            with torch.enable_grad():
                y = ctx.formula(x)
            found = torch.autograd.grad(y, x, gradients, create_graph=again)[0]
        else:
            found = ctx.kernel.backward(*gradients, x, *kept)
        return found, None, None
