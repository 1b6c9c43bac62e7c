"""Functions whose batching rule or second derivative torch lacks: the forms of this library take their place.

They do so where something is transformed or differentiated; elsewhere torch's own run.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bridge._pure_context import Context, Handler
from bridge._pure_questions import answer
from bridge._pure_values import is_unknown
from purenn import layers, losses
from purenn._modes import is_plain
from purenn.errors import ArgumentError

_torch: Any = torch


def _needs_ours(*values: Any) -> bool:
    if not is_plain():
        return True
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _instead(function: Any, ours: Callable[..., Any]) -> Handler:
    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        if not _needs_ours(*args, *kwargs.values()):
            return function(*args, **kwargs)
        return ours(*args, **kwargs)

    return run


def _reduction(size_average: bool | None, reduce: bool | None, reduction: Any) -> Any:
    # The first two are torch's older way to say the same.
    if size_average is None and reduce is None:
        return reduction
    return "none" if reduce is False else "sum" if size_average is False else "mean"


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return layers.bilinear(layers.Bilinear(weight, bias), input1, input2)


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: Any = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    return losses.ctc_loss(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank=blank,
        zero_infinity=zero_infinity,
        reduction=reduction,
    )


def _multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Any = "mean",
) -> Tensor:
    reduction = _reduction(size_average, reduce, reduction)
    return losses.multi_margin_loss(input, target, p=p, margin=margin, weight=weight, reduction=reduction)


def _two_tensors(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(
        input: Tensor,
        target: Tensor,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Any = "mean",
    ) -> Tensor:
        return loss(input, target, reduction=_reduction(size_average, reduce, reduction))

    return run


def _linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, options: Any = None, **kw: Any
) -> Tensor:
    chunk_size = None if options is None else options.batch_chunk_size
    return losses.linear_cross_entropy(input, linear_weight, target, chunk_size=chunk_size, **kw)


def _interpolate(
    context: Context, input: Tensor, size: Any = None, scale_factor: Any = None, *args: Any, **kw: Any
) -> Tensor:
    names = ("mode", "align_corners", "recompute_scale_factor", "antialias")
    options = {**kw, **dict(zip(names, args, strict=False))}
    if is_plain() or options.get("antialias"):
        return F.interpolate(input, size, scale_factor, **options)
    options.pop("antialias", None)
    sizes = {"size": _hashable(context, size), "scale_factor": _hashable(context, scale_factor)}
    try:
        return layers.upsample(layers.Upsample(**sizes, **options), input)
    except ArgumentError:
        # torch takes some options that say the same twice.
        return F.interpolate(input, size, scale_factor, **options)


def _hashable(context: Context, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple([_hashable(context, item) for item in value])
    if isinstance(value, Tensor):
        return answer("item", (value,), context.paths) if is_unknown(value) else value.item()
    return value


def _adaptive_avg_pool(function: Any) -> Handler:
    # torch keeps the order of dimensions in memory, and has no batching rule for that.
    return lambda context, input, *sizes: function(input if is_plain() else input.contiguous(), *sizes)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    over = [n for n in range(v.dim()) if n != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    return v * (g / (torch.linalg.vector_norm(v, 2, over, keepdim=True) if over else v.abs()))


def _grouped_mm(context: Context, mat_a: Tensor, mat_b: Tensor, *args: Any, **kw: Any) -> Tensor:
    """Each row of the first times the matrix of its group; `offs` has the ends of the groups."""
    offs = kw.get("offs", args[0] if args else None)
    if is_plain() or mat_a.dim() != 2 or mat_b.dim() != 3 or offs is None:
        return F.grouped_mm(mat_a, mat_b, *args, **kw)
    group = (torch.arange(len(mat_a), device=mat_a.device)[:, None] >= offs).sum(-1).clamp(max=mat_b.shape[0] - 1)
    return (mat_a[:, None] @ mat_b[group]).squeeze(1)


def _histc(context: Context, input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    if is_plain() or min >= max:
        return torch.histc(input, bins, min, max)
    x = input.flatten()
    places = ((x - min) * (bins / (max - min))).floor().clamp(max=bins - 1)
    inside = (x >= min) & (x <= max)
    return ((places[:, None] == torch.arange(bins, device=x.device)) & inside[:, None]).sum(0).to(input.dtype)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return layers.hardsigmoid(layers.Hardsigmoid(), input)


HANDLERS: dict[Any, Handler] = {
    F.bilinear: _instead(F.bilinear, _bilinear),
    F.ctc_loss: _instead(F.ctc_loss, _ctc_loss),
    F.multi_margin_loss: _instead(F.multi_margin_loss, _multi_margin_loss),
    F.multilabel_margin_loss: _instead(F.multilabel_margin_loss, _two_tensors(losses.multi_label_margin_loss)),
    F.soft_margin_loss: _instead(F.soft_margin_loss, _two_tensors(losses.soft_margin_loss)),
    F.hardsigmoid: _instead(F.hardsigmoid, _hardsigmoid),
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _adaptive_avg_pool(F.adaptive_avg_pool2d),
    F.adaptive_avg_pool3d: _adaptive_avg_pool(F.adaptive_avg_pool3d),
    torch.histc: _histc,
    Tensor.histc: _histc,
    _torch._weight_norm: _instead(_torch._weight_norm, _weight_norm),
}
# Of newer versions of torch.
if hasattr(F, "grouped_mm"):
    HANDLERS[F.grouped_mm] = HANDLERS[_torch._grouped_mm] = _grouped_mm
if hasattr(F, "linear_cross_entropy"):
    HANDLERS[F.linear_cross_entropy] = _instead(F.linear_cross_entropy, _linear_cross_entropy)

#: Of modules whose code looks at values, or has a wrong derivative: class -> function of the module and its inputs.
FORWARDS: dict[type, Callable[..., Any]] = {
    torch.nn.AdaptiveLogSoftmaxWithLoss: layers.adaptive_log_softmax_with_loss,
    torch.nn.CrossMapLRN2d: layers.cross_map_lrn2d,
}
