"""Batch norm of large batches on the CPU, by the kernels that are fast.

Where channels come first in memory, torch's kernel takes the statistics one element after another, which is most of
its time. Here they are sums and products of rows, which use vectors. The gradient is torch's. Its derivative takes
torch some 45 operations on the whole batch, and derivatives of those are wrong; here it takes 17, and they are right.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing

from purenn._modes import is_reverse_only

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
        given: Any = gradients[0], *ctx.saved_tensors, ctx.eps, ctx.needs_input_grad[:3]
        return *(_Gradients.apply(*given) if is_reverse_only() else _gradients(*given)), None


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        *tensors, ctx.eps, _ = given
        ctx.save_for_backward(*tensors)
        return _gradients(*given)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, inverse_std = ctx.saved_tensors
        if torch.is_grad_enabled():  # for the next derivative the statistics are functions of the input
            var, mean = torch.var_mean(x, _all_but_channels(x), correction=0)
            inverse_std = (var + ctx.eps).rsqrt()
        return *_second_gradients(cotangents, g, x, weight, mean, inverse_std), None, None, None, None


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse_std: Tensor, eps: float, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    return _backward(g, x, weight, None, None, mean, inverse_std, True, eps, wanted)


def _second_gradients(
    cotangents: Sequence[Tensor | None], g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse_std: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients by `g`, `x` and `weight`, given those by the gradients by input, weight and bias.

    With the normalised input n and P(a) = a - mean(a) - n mean(a n) the latter are weight / std P(g), sum(g n) and
    sum(g).
    """
    like = x, mean, mean
    of_x, *of_affine = (torch.zeros_like(t) if c is None else c for c, t in zip(cotangents, like, strict=True))
    over, count = _all_but_channels(x), x.numel() // x.shape[1]

    def of_channels(values: Tensor) -> Tensor:
        return values.view(-1, *[1] * (x.dim() - 2))

    def mean_product(a: Tensor, b: Tensor) -> Tensor:
        return of_channels(_products(a, b) / count)

    def projected(a: Tensor, along: Tensor) -> Tensor:
        return torch.addcmul(a - a.mean(over, keepdim=True), n, -along)

    mean, inverse_std, of_weight, of_bias = map(of_channels, (mean, inverse_std, *of_affine))
    scale = inverse_std if weight is None else inverse_std * of_channels(weight)
    n = (x - mean) * inverse_std
    g_along, along = mean_product(g, n), mean_product(of_x, n)
    g_left, left = projected(g, g_along), projected(of_x, along)
    both = mean_product(g_left, of_x)
    by_g = (left * scale).addcmul(n, of_weight) + of_bias
    by_x = g_left * (inverse_std * (of_weight - scale * along))
    by_x = by_x.addcmul(left, -inverse_std * scale * g_along).addcmul(n, -inverse_std * scale * both)
    return by_g, by_x, None if weight is None else (count * inverse_std * both).flatten()


def _all_but_channels(x: Tensor) -> tuple[int, ...]:
    return 0, *range(2, x.dim())


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    count = x.numel() // x.shape[1]
    mean = x.flatten(2).sum(2).sum(0) / count
    one = torch.ones_like(mean)

    def squares(part: Tensor) -> Tensor:
        centred = _normalised(part, None, None, mean, one, 0.0)
        return _products(centred, centred)

    examples = max(1, _ELEMENTS_AT_A_TIME * torch.get_num_threads() // x[0].numel())
    return mean, torch.stack([squares(part) for part in x.split(examples)]).sum(0) / count


def _products(a: Tensor, b: Tensor) -> Tensor:
    rows, others = (x.flatten(0, 1).flatten(1).unsqueeze(1) for x in (a, b))
    return torch.bmm(rows, others.transpose(1, 2)).view(a.shape[:2]).sum(0)
