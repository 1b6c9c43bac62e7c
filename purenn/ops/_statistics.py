"""Normalisation without hidden state: running statistics go in, and new ones come out.

Outside transformations these are torch's fused kernels, given fresh buffers to write into. Inside them the affine part
(weight and bias) stays out of the kernel, because torch's batching rules for the fused affine form give silently wrong
numbers in the gradient of a vmap of a gradient; the statistics come from the kernel's own second and third outputs.

With a bias alone the kernels have no second derivative, or a silently wrong one: it is added outside of them.

Third derivatives of these kernels are silently wrong in torch, but for one, and so are derivatives of forward ones.
So where a derivative of a derivative is seen to be taken, to which an outermost gradient may add a third, or a forward
one, ordinary operations take their place. Where plain autograd takes more than one of the three, or a compiler traces
them, nothing is seen, and the numbers are torch.nn's (but for large batches on the CPU, whose rule is our own).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from purenn._modes import is_plain, norms_go_wrong, runs_at_once
from purenn.ops._batch_kernel import is_large, large_batch_norm

Running = tuple[Float[Tensor, " channels"] | None, Float[Tensor, " channels"] | None]


def standardise(
    x: Float[Tensor, "batch channels *space"], *, eps: float = 1e-5
) -> tuple[Float[Tensor, "batch channels *space"], Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Shift and scale every channel to mean 0 and variance 1 over the batch and all positions.

    Args:
        x: the input, with at least one value per channel. Half precision is computed in float32.
        eps: added to the variance.

    Returns:
        The result; the mean and the biased variance that were used, through which no gradient flows.
    """
    wide = one_space(_at_least_float32(x))
    if norms_go_wrong():
        y, mean, var = _in_operations(wide, (0, *range(2, wide.dim())), eps)
        return all_space(y, x).to(x.dtype), mean.detach().flatten(), var.detach().flatten()
    y, mean, inverse_std = torch.native_batch_norm(wide, None, None, None, None, True, 0.0, eps)
    return all_space(y, x).to(x.dtype), mean.detach(), (inverse_std.detach().pow(-2) - eps).clamp_min(0)


def one_space(x: Tensor) -> Tensor:
    """A batch of one with all positions in one dimension, other batches as they are.

    With more dimensions torch's kernels for the CPU take an example whose channels come last in memory, or its
    gradient, for one whose channels come first, and give silently wrong gradients.
    """
    return x.flatten(2) if x.dim() > 3 and x.shape[0] == 1 else x


def all_space(y: Tensor, x: Tensor) -> Tensor:
    """What was made of ``one_space(x)`` in the shape of `x`."""
    return y if y.dim() == x.dim() else y.reshape(x.shape)


def batch_norm(
    x: Float[Tensor, "batch channels *space"],
    running_mean: Float[Tensor, " channels"] | None = None,
    running_var: Float[Tensor, " channels"] | None = None,
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    *,
    train: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "batch channels *space"], Running]:
    """Normalise every channel over the batch and all positions.

    Args:
        x: the input.
        running_mean: mean to normalise with when `train` is False; None to use the batch's own always.
        running_var: variance that belongs to it.
        weight: factor of each channel, None for 1.
        bias: summand of each channel, None for 0.
        train: whether to normalise with the batch's own statistics and to update the running ones.
        momentum: share of the batch's statistics in the new running ones.
        eps: added to the variance.

    Returns:
        The result, and the new running mean and (unbiased) variance: those given, if there is nothing to update.

    Source:
        Ioffe, Szegedy: Batch Normalization, 2015.
    """
    if has_torch_function_variadic(x, weight, bias):
        given = x, running_mean, running_var, weight, bias
        return handle_torch_function(batch_norm, (x, weight, bias), *given, train=train, momentum=momentum, eps=eps)
    if weight is None and bias is not None:
        y, running = batch_norm(x, running_mean, running_var, train=train, momentum=momentum, eps=eps)
        return _affine(y, None, bias), running
    by_running = not train and running_mean is not None and running_var is not None
    # The fused form has right second derivatives; its batching rules and third ones are wrong.
    fused = runs_at_once() and not norms_go_wrong()
    large = fused and not by_running and is_large(x, weight, bias)
    if fused and not large and (by_running or (x.numel() > x.shape[1] and not x.is_meta)):
        keep = _copy if train else _constant
        running = keep(running_mean), keep(running_var)
        wide = one_space(x) if _is_differentiated(x, weight, bias) else x
        # What F.batch_norm calls when it has asked once more how many values there are.
        cudnn = torch.backends.cudnn.enabled
        y = torch.batch_norm(wide, weight, bias, *running, not by_running, float(momentum), eps, cudnn)
        return all_space(y, x), running
    running = running_mean, running_var = _detached(running_mean), _detached(running_var)
    if by_running and running_mean is not None and running_var is not None:
        scale = (running_var + eps).rsqrt() if weight is None else (running_var + eps).rsqrt() * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        return _affine(x, scale, shift), running
    if x.numel() == 0:
        return _affine(x, weight, bias), running
    if large:
        y, mean, var = large_batch_norm(x, weight, bias, eps)
    else:
        y, mean, var = standardise(x, eps=eps)
        y = _affine(y, weight, bias)
    if train and running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        running = _mix(running_mean, mean, momentum), _mix(running_var, var * (count / max(count - 1, 1)), momentum)
    return y, running


def instance_norm(
    x: Float[Tensor, "batch channels *space"],
    running_mean: Float[Tensor, " channels"] | None = None,
    running_var: Float[Tensor, " channels"] | None = None,
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    *,
    train: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "batch channels *space"], Running]:
    """Normalise every channel of every example over its positions; arguments and result as in `batch_norm`.

    The running statistics are averages over the batch of those of the examples.

    Source:
        Ulyanov, Vedaldi, Lempitsky: Instance Normalization, 2016.
    """
    running = running_mean, running_var = _detached(running_mean), _detached(running_var)
    if weight is None and bias is not None:
        y, running = instance_norm(x, *running, train=train, momentum=momentum, eps=eps)
        return _affine(y, None, bias), running
    if x.numel() == 0 or (not train and running_mean is not None):
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    if is_plain():
        if x.is_cpu and running_mean is None:  # there the same numbers come sooner from the kernel for groups
            return F.group_norm(x, x.shape[1], weight, bias, eps), running
        updated = (_copy(running_mean), _copy(running_var)) if train else (None, None)
        y = F.instance_norm(one_space(x), *updated, weight, bias, True, momentum, eps)
        return all_space(y, x), updated
    batch, channels, *space = x.shape
    y, mean, var = standardise(x.reshape(1, batch * channels, *space), eps=eps)
    if train and running_mean is not None and running_var is not None:
        count = math.prod(space)
        mean, var = (statistic.reshape(batch, channels).mean(0) for statistic in (mean, var))
        running = _mix(running_mean, mean, momentum), _mix(running_var, var * (count / max(count - 1, 1)), momentum)
    return _affine(y.reshape(x.shape), weight, bias), running


def group_norm(
    x: Float[Tensor, "batch channels *space"],
    num_groups: int,
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "batch channels *space"]:
    """Normalise every group of channels of every example over its channels and positions.

    Args:
        x: the input.
        num_groups: into how many groups of neighbours to divide the channels.
        weight: factor of each channel, None for 1.
        bias: summand of each channel, None for 0.
        eps: added to the variance.

    Source:
        Wu, He: Group Normalization, 2018.
    """
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(group_norm, (x, weight, bias), x, num_groups, weight, bias, eps=eps)
    if weight is None and bias is not None:
        return _affine(group_norm(x, num_groups, eps=eps), None, bias)
    if is_plain():
        return F.group_norm(x, num_groups, weight, bias, eps)
    if x.numel() == 0:
        return _affine(x, weight, bias)
    y, _, _ = standardise(x.reshape(1, x.shape[0] * num_groups, -1), eps=eps)
    return _affine(y.reshape(x.shape), weight, bias)


def layer_norm(
    x: Float[Tensor, "..."],
    normalized_shape: tuple[int, ...],
    weight: Float[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "..."]:
    """Normalise over the last dimensions, whose sizes are `normalized_shape`.

    Args:
        x: the input.
        normalized_shape: sizes of the dimensions to normalise over.
        weight: factor of each element, of that shape, None for 1.
        bias: summand of each element, None for 0.
        eps: added to the variance.

    Source:
        Ba, Kiros, Hinton: Layer Normalization, 2016.
    """
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(layer_norm, (x, weight, bias), x, normalized_shape, weight, bias, eps=eps)
    if weight is None and bias is not None:
        return (layer_norm(x, normalized_shape, eps=eps) + bias).to(x.dtype)
    if is_plain():
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    if norms_go_wrong():
        last = tuple(range(-len(normalized_shape), 0))
        y, _, _ = _in_operations(_at_least_float32(x), last, eps)
    else:
        y = F.layer_norm(x, normalized_shape, None, None, eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


def rms_norm(
    x: Float[Tensor, "..."],
    normalized_shape: tuple[int, ...],
    weight: Float[Tensor, "..."] | None = None,
    *,
    eps: float | None = None,
) -> Float[Tensor, "..."]:
    """Divide by the root of the mean square over the last dimensions, whose sizes are `normalized_shape`.

    Args:
        x: the input.
        normalized_shape: sizes of the dimensions to normalise over.
        weight: factor of each element, of that shape, None for 1.
        eps: added to the mean square. Default: the distance from 1 to the next number, in float32 at least.

    Source:
        Zhang, Sennrich: Root Mean Square Layer Normalization, 2019.
    """
    # torch's kernel warns about a weight of another dtype, and then computes the same in plain operations.
    if is_plain() and (weight is None or weight.dtype == x.dtype):
        return F.rms_norm(x, normalized_shape, weight, eps)
    wide = _at_least_float32(x)
    last = tuple(range(-len(normalized_shape), 0))
    floor = torch.finfo(wide.dtype).eps if eps is None else eps
    y = wide * (wide.square().mean(last, keepdim=True) + floor).rsqrt()
    return (y if weight is None else y * weight).to(x.dtype)


def _in_operations(x: Tensor, over: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised values, mean and biased variance over some dimensions; derivatives of any order are right."""
    mean = x.mean(over, keepdim=True)
    centred = x - mean
    var = centred.square().mean(over, keepdim=True)
    return centred * (var + eps).rsqrt(), mean, var


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    over_space = (-1, *[1] * (x.dim() - 2))
    y = x if weight is None else x * weight.reshape(over_space)
    return (y if bias is None else y + bias.reshape(over_space)).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _is_differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _detached(statistic: Tensor | None) -> Tensor | None:
    # As in torch's kernels, inside and outside transformations alike: running statistics are never differentiated.
    return None if statistic is None else statistic.detach()


def _constant(statistic: Tensor | None) -> Tensor | None:
    # As `_detached`, which costs something; only outside transformations a tensor says whether it needs that.
    return statistic.detach() if statistic is not None and statistic.requires_grad else statistic


def _copy(statistic: Tensor | None) -> Tensor | None:
    constant = _constant(statistic)
    return None if constant is None else constant.clone()


def _mix(old: Tensor, new: Tensor, momentum: float | Tensor) -> Tensor:
    return ((1 - momentum) * old + momentum * new).to(old.dtype)
