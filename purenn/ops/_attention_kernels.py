"""The two ways to compute attention: by its formula, in plain operations, and by torch's fused kernels.

A fused kernel needs little memory, but has no second derivative and, on the CPU, no batching rule. So only the value
and the first derivative are its own; a derivative of that derivative goes by the formula.

Heads are dimension -3. With ``groups > 1`` each head of keys and values serves that many heads of queries.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn._modes import is_plain
from purenn.ops._masks import causal_mask

# By their own names, because the public function does not give out what its backward pass needs.
_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_choose = torch.ops.aten._fused_sdp_choice.default


def weights(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, scale: float, groups: int) -> Tensor:
    """The softmax of the scores, in float32 at least; every row of the mask lets something through."""
    scores = product(q * scale, k.mT, groups)
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    if is_causal:
        mask = causal_mask(q.shape[-2], k.shape[-2], device=q.device)
    if mask is not None and mask.dtype == torch.bool:
        scores = torch.where(mask, scores, -math.inf)
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(-1)


def product(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """The matrix product of every head with what it shares with its group, which is never repeated for that."""
    if groups == 1:
        return left @ right
    return (_gathered(left, groups) @ right).unflatten(-2, (groups, left.shape[-2])).flatten(-4, -3)


def _gathered(x: Tensor, groups: int) -> Tensor:
    # The rows of all heads of a group, one below the other.
    return x if groups == 1 else x.unflatten(-3, (-1, groups)).flatten(-3, -2)


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    batch: tuple[int, ...],
    groups: int,
) -> Tensor | None:
    """The result by a fused kernel; None if torch has none for these tensors.

    Args:
        q: the queries.
        k: the keys.
        v: the values.
        mask: as `scaled_dot_product_attention` takes it, without rows that let nothing through.
        is_causal: whether query i sees the keys 0 to i only; then `mask` is None.
        scale: factor of the scores.
        batch: leading dimensions of the result, the heads of the queries included.
        groups: how many heads of queries share a head of keys.
    """
    if (mask is not None and mask.requires_grad) or not q.numel():
        return None
    if q.dim() != 4 or not batch == q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        q = _with_four_dimensions(q.expand(*batch, *q.shape[-2:]))
        heads = k.shape[-3:-2] if groups > 1 else batch[-1:]
        k, v = (_with_four_dimensions(x.expand(*batch[:-1], *heads, *x.shape[-2:])) for x in (k, v))
    if mask is not None:
        # With more dimensions than the kernels take, the mask's are merged like those of the queries.
        merges = mask.dim() > 3 and len(batch) > 2
        mask = _with_four_dimensions(mask.expand(*batch[:-1], *mask.shape[-3:]) if merges else mask)
    if not _choose(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=groups > 1):
        return None
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out = _Fused.apply(q, k, v, mask, is_causal, scale)
    else:
        out = _public(q, k, v, mask, is_causal, scale)
    return out if out.shape[:-2] == batch else out.reshape(*batch, *out.shape[-2:])


def _with_four_dimensions(x: Tensor) -> Tensor:
    return x.flatten(0, -4) if x.dim() > 4 else x[(None,) * (4 - x.dim())]


def _public(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=grouped)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q, k, v, mask, is_causal, scale = inputs
        ctx.is_causal, ctx.scale = is_causal, scale
        if q.device.type != "cpu":
            ctx.save_for_backward(q, k, v, mask)
            return _public(q, k, v, mask, is_causal, scale)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -math.inf)
        mask = None if mask is None else mask.to(q.dtype)
        out, logsumexp = _cpu_forward(q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale)
        ctx.save_for_backward(q, k, v, mask, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple:
        (gradient,) = gradients
        q, k, v, mask, *rest = ctx.saved_tensors
        options = mask, ctx.is_causal, ctx.scale
        if torch.is_grad_enabled() or not is_plain(gradient):
            found = _by_formula(gradient, q, k, v, *options)
        elif rest:
            found = _cpu_backward(gradient, q, k, v, *rest, 0.0, ctx.is_causal, attn_mask=mask, scale=ctx.scale)
        else:
            # Every other device has kernels of its own; that the forward one may run again is what they have in common.
            with torch.enable_grad():
                q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
                found = torch.autograd.grad(_public(q, k, v, *options), (q, k, v), gradient)
        return *found, None, None, None


def _by_formula(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    groups = q.shape[1] // k.shape[1]
    probabilities = weights(q, k, mask, is_causal, scale, groups)
    of_weights = product(gradient, v.mT, groups)
    centred = of_weights - (probabilities * of_weights).sum(-1, keepdim=True)
    of_scores = (probabilities * centred).to(q.dtype) * scale
    return (
        product(of_scores, k, groups),
        _gathered(of_scores, groups).mT @ _gathered(q, groups),
        _gathered(probabilities.to(v.dtype), groups).mT @ _gathered(gradient, groups),
    )
