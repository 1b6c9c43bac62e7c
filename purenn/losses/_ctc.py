"""Connectionist temporal classification: the probability of a label sequence when nobody says which frame is which.

Every frame emits a label or a blank; repeated labels and then blanks are taken out of what is emitted. The loss is the
negative logarithm of the sum over all emissions that leave the target, found step by step: `_log_likelihood` keeps, for
each prefix of the target with blanks around its labels, the logarithm of the probability to have emitted it so far.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn._kernels import Kernel, differentiable_twice
from purenn._modes import is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.losses._binds import binds
from purenn.losses._kernels import may_fuse
from purenn.losses._reduction import Reduction, check_reduction, reduced
from purenn.tree import Layer, container, static

# Logarithm of a probability that counts as 0. Minus infinity would make gradients NaN.
_NEVER = -1e30

_aten = torch.ops.aten

Lengths = Int[Tensor, "*batch"] | Sequence[int] | int


def ctc_loss(
    log_probabilities: Float[Tensor, "time *batch classes"],
    target: Int[Tensor, "*targets"],
    input_lengths: Lengths,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """Negative log likelihood of label sequences, summed over all alignments with the frames.

    The derivative is that of this function, for any `log_probabilities`. torch's own is right only behind a log
    softmax, where both agree. An impossible target (more labels than frames have room for) costs infinity, with
    gradient 0.

    Where nothing transforms or traces, torch's kernel computes value and gradient. Otherwise, and for second
    derivatives, a Python loop goes through the frames, which a compiler unrolls: about ten operations a frame.

    Args:
        log_probabilities: logarithms, ``[time, batch, classes]`` or ``[time, classes]``.
        target: the labels, without blanks: padded ``[batch, labels]`` or, for a single sequence, ``[labels]``; or those
            of a batch one after another in one dimension. Padding is not read.
        input_lengths: number of frames of each sequence, ``[batch]`` or a single number.
        target_lengths: number of labels of each, likewise.
        blank: the class that means no label.
        zero_infinity: whether impossible targets cost 0 instead.
        reduction: over the batch: "sum", "none", or "mean" of the losses divided by their targets' lengths.

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction, a `blank` that is no class, or lengths that are too large. (Lengths in
            tensors are checked by torch's kernel, where it runs.)

    Source:
        Graves et al.: Connectionist Temporal Classification, 2006, section 4.1.
    """
    check_reduction(reduction)
    _check(log_probabilities, blank)
    batched = log_probabilities.ndim == 3
    frames = log_probabilities if batched else log_probabilities.unsqueeze(1)
    if frames.dtype in (torch.float16, torch.bfloat16):
        frames = frames.float()
    size = frames.shape[1]
    _check_target(target, size)
    target = target.long()
    frames_read = _lengths("input_lengths", input_lengths, size, len(frames), frames.device)
    labels_read = _lengths("target_lengths", target_lengths, size, target.shape[-1], frames.device)

    def formula(frames: Tensor) -> Tensor:
        labels = _padded(target, labels_read, target_lengths, blank)
        likelihood = _log_likelihood(frames, labels, frames_read, labels_read, blank)
        return torch.where(likelihood < _NEVER / 2, torch.inf, -likelihood)

    if size > 0 and may_fuse(log_probabilities, target) and is_plain(frames_read, labels_read):
        loss = differentiable_twice(_kernel(target, frames_read, labels_read, blank), formula, frames)
    else:
        loss = formula(frames)
    if zero_infinity:
        loss = torch.where(loss.isinf(), 0, loss)
    loss = loss.to(log_probabilities.dtype)
    if reduction == "mean":
        return (loss / labels_read.clamp(min=1)).mean()
    return reduced(loss if batched else loss.squeeze(0), reduction)


def _kernel(target: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int) -> Kernel:
    options = (target, input_lengths, target_lengths)

    def forward(frames: Tensor) -> tuple[Tensor, ...]:
        loss, log_alpha = _aten._ctc_loss.Tensor(frames, *options, blank, True)
        return loss, loss, log_alpha

    def backward(gradient: Tensor, frames: Tensor, loss: Tensor, log_alpha: Tensor) -> Tensor:
        found = _aten._ctc_loss_backward.Tensor(gradient, frames, *options, loss, log_alpha, blank, True)
        # This has the derivative of a log softmax in it, one more term, which is taken out here.
        read = torch.arange(len(frames), device=frames.device).unsqueeze(-1) < input_lengths
        softmax = frames.exp() * torch.where(read & loss.isfinite(), gradient, 0).unsqueeze(-1)
        # Where a probability is 0 it is NaN instead of 0.
        return torch.where(frames.isinf(), 0, found - softmax)

    return Kernel(forward, backward)


def _log_likelihood(
    frames: Tensor, labels: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> Tensor:
    # States are blank, label, blank, ..., label, blank. Each leads to itself and the next; labels past a blank, too, if
    # the next label is another one.
    blanks = torch.full((labels.shape[0], labels.shape[1] + 1), blank, device=labels.device)
    states = torch.stack((blanks[:, 1:], labels), -1).flatten(1)
    states = torch.cat((states, blanks[:, :1]), 1)
    past_blank = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    emitted = frames.clamp(min=_NEVER).gather(2, states.expand(len(frames), *states.shape)).unbind()
    state = torch.arange(states.shape[1], device=states.device)
    forward = torch.where(state < 2, emitted[0], _NEVER)
    never = torch.full_like(forward[:, :2], _NEVER)
    for time in range(1, len(frames)):
        next_state = torch.cat((never[:, :1], forward[:, :-1]), 1)
        next_label = torch.cat((never, torch.where(past_blank, forward[:, :-2], _NEVER)), 1)[:, : len(state)]
        new = torch.stack((forward, next_state, next_label)).logsumexp(0) + emitted[time]
        forward = torch.where((time < input_lengths).unsqueeze(1), new, forward)
    # The last state is the blank after the last label, or this label.
    last = 2 * target_lengths.unsqueeze(1)
    at_blank = forward.gather(1, last)
    at_label = torch.where(last > 0, forward.gather(1, (last - 1).clamp(min=0)), _NEVER)
    likelihood = torch.cat((at_blank, at_label), 1).logsumexp(1)
    nothing = torch.where(target_lengths == 0, 0.0, _NEVER)
    return torch.where(input_lengths == 0, nothing, likelihood)


def _padded(target: Tensor, lengths: Tensor, given: Lengths, blank: int) -> Tensor:
    # Labels as [batch, labels], with blanks after the last one.
    if target.ndim == 1 and len(lengths) == 1:
        target = target.unsqueeze(0)
    elif target.ndim == 1:
        # The longest may be as long as all together, unless the lengths are plain numbers.
        longest = len(target) if isinstance(given, Tensor) else max([0, *_numbers(given)])
        position = torch.arange(longest, device=target.device) + (lengths.cumsum(0) - lengths).unsqueeze(1)
        target = target[position.clamp(max=len(target) - 1)]
    return torch.where(torch.arange(target.shape[1], device=target.device) < lengths.unsqueeze(1), target, blank)


def _lengths(name: str, given: Lengths, size: int, largest: int, device: torch.device) -> Tensor:
    lengths = given.to(device) if isinstance(given, Tensor) else torch.tensor(_numbers(given), device=device)
    if lengths.ndim > 1 or lengths.numel() != size:
        raise ShapeError(
            f"ctc_loss: {name} must hold one number for each of the {size} sequences, got shape {list(lengths.shape)}."
        )
    if not isinstance(given, Tensor) and not all(0 <= length <= largest for length in _numbers(given)):
        raise ArgumentError(f"ctc_loss: {name} must lie between 0 and {largest}, got {_numbers(given)}.")
    return lengths.long().reshape(size)


def _numbers(given: Sequence[int] | int) -> list[int]:
    return [given] if isinstance(given, int) else list(given)


def _check_target(target: Tensor, size: int) -> None:
    if target.ndim != 1 and (target.ndim != 2 or target.shape[0] != size):
        raise ShapeError(
            f"ctc_loss: target must be [batch, labels] with batch {size}, or all labels in one dimension, got shape "
            f"{list(target.shape)}."
        )


def _check(log_probabilities: Tensor, blank: int) -> None:
    if log_probabilities.ndim not in (2, 3) or len(log_probabilities) == 0:
        raise ShapeError(
            f"ctc_loss: log_probabilities must be [time, batch, classes] or [time, classes] with at least one frame, "
            f"got shape {list(log_probabilities.shape)}."
        )
    classes = log_probabilities.shape[-1]
    if not 0 <= blank < classes:
        raise ArgumentError(f"ctc_loss: blank must be one of the {classes} classes, got {blank}.")


@binds(ctc_loss)
@container
class CTCLoss(Layer):
    """`ctc_loss` with its options; it is applied to log probabilities, target, and the lengths of both.

    Attributes:
        blank: the class that means no label.
        reduction: "mean", "sum" or "none".
        zero_infinity: whether impossible targets cost 0.
    """

    blank: int = static(default=0)
    reduction: Reduction = static(default="mean")
    zero_infinity: bool = static(default=False)
