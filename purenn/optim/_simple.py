"""Transformations without a memory: scaling, weight decay, clipping."""

from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._hyperparameters import Hyperparameter, Schedule, as_number, require_not_negative, require_number
from purenn.optim._lamb import norm
from purenn.optim._tensor_list import root
from purenn.optim._transformation import EmptyState, GradientTransformation, with_state
from purenn.tree import container, leaves, partition
from purenn.tree import map as tree_map


@container
class CountState:
    """State of transformations that only count.

    Attributes:
        count: number of updates done, an int64 scalar.
    """

    count: Tensor


def _times(factor: Any, updates: Any) -> Any:
    # A factor without dimensions must not widen a leaf without dimensions.
    def scaled(update: Tensor) -> Tensor:
        here = factor.to(update.device) if isinstance(factor, Tensor) else factor
        return (update * here).to(update.dtype)

    return tree_map(scaled, updates)


def scale(factor: float | Tensor) -> GradientTransformation:
    """Updates times a number, or a tensor without dimensions; ``scale(-0.1)`` is gradient descent.

    Raises:
        ArgumentError: it is something else.
    """
    require_number("scale", factor=factor)
    if callable(factor):
        raise ArgumentError("scale: factor must be a number or a tensor; for a schedule there is scale_by_schedule.")
    return GradientTransformation(
        lambda params: EmptyState(), lambda grads, state, params: (_times(factor, grads), state)
    )


def scale_by_schedule(schedule: Schedule) -> GradientTransformation:
    """Updates times a number that depends on how many updates have been done.

    Args:
        schedule: ``schedule(number of updates done) -> factor``.

    Raises:
        ArgumentError: it is no function.
    """
    if not callable(schedule):
        raise ArgumentError(f"scale_by_schedule: schedule must be a function of the step, got {schedule!r}.")

    def init(params: Any) -> CountState:
        return CountState(torch.zeros((), dtype=torch.int64))

    def update(grads: Any, state: CountState, params: Any) -> tuple[Any, CountState]:
        return _times(schedule(as_number(state.count)), grads), CountState(state.count + 1)

    return with_state("scale_by_schedule", CountState, init, update)


def add_decayed_weights(weight_decay: Hyperparameter) -> GradientTransformation:
    """Adds a multiple of the parameters to the updates.

    Before an optimiser this is L2 regularisation. `masked` chooses the leaves that decay; frozen leaves never do.

    Args:
        weight_decay: the factor: a float, a tensor without dimensions or a schedule.

    Raises:
        ArgumentError: a negative number.
    """
    require_not_negative("add_decayed_weights", weight_decay=weight_decay)

    def init(params: Any) -> CountState:
        return CountState(torch.zeros((), dtype=torch.int64))

    def update(grads: Any, state: CountState, params: Any) -> tuple[Any, CountState]:
        factor = weight_decay(as_number(state.count)) if callable(weight_decay) else weight_decay
        decayed = _times(factor, partition(params)[0])
        return tree_map(lambda g, w: g + w, grads, decayed), CountState(state.count + 1)

    return with_state("add_decayed_weights", CountState, init, update)


def clip_by_value(limit: float | Tensor) -> GradientTransformation:
    """Every element of the updates limited to ``[-limit, limit]``; of complex ones each of the two parts.

    Raises:
        ArgumentError: a negative limit.
    """
    require_not_negative("clip_by_value", limit=limit)

    def clipped(g: Tensor) -> Tensor:
        if g.is_complex():
            return torch.view_as_complex(clipped(torch.view_as_real(g)).contiguous())
        most: Any = limit.to(g.device, g.dtype) if isinstance(limit, Tensor) else limit
        return g.clamp(-most, most)

    return GradientTransformation(
        lambda params: EmptyState(), lambda grads, state, params: (tree_map(clipped, grads), state)
    )


def global_norm(tree: Any) -> Tensor:
    """The Euclidean norm of all leaves together, a scalar on the device of the first; 0 for a tree without leaves.

    Its derivative at 0 is 0. Leaves of less than 32 bits are summed in float32.
    """
    values = leaves(tree)
    if not values:
        return torch.zeros(())
    wide = [value.float() if value.dtype in (torch.float16, torch.bfloat16) else value for value in values]
    squares = [((x * x.conj()).real if x.is_complex() else x * x).sum().to(wide[0].device) for x in wide]
    return root(torch.stack(squares).sum())


def clip_by_global_norm(max_norm: float | Tensor) -> GradientTransformation:
    """Updates scaled down so that the norm of all together is at most `max_norm`.

    A NaN in one leaf is a NaN in all of them, as for `torch.nn.utils.clip_grad_norm_`.

    Args:
        max_norm: a number, or a tensor without dimensions.

    Raises:
        ArgumentError: a negative norm.

    Source:
        Pascanu, Mikolov, Bengio: On the Difficulty of Training Recurrent Neural Networks, 2013, algorithm 1.
    """
    require_not_negative("clip_by_global_norm", max_norm=max_norm)

    def update(grads: Any, state: EmptyState, params: Any) -> tuple[Any, EmptyState]:
        size = global_norm(grads)
        most = max_norm.to(size.device, size.dtype) if isinstance(max_norm, Tensor) else max_norm
        return _times(_factor(size, most), grads), state

    return GradientTransformation(lambda params: EmptyState(), update)


def _factor(size: Tensor, most: Any) -> Tensor:
    # What makes a norm not larger than it may be, and NaN of one that is NaN.
    small = size <= most
    # The quotient of a norm that is small is not used, but its derivative must exist.
    return torch.where(small, 1.0, most / torch.where(small, 1.0, size))


def adaptive_grad_clip(clipping: float, *, eps: float = 1e-3) -> GradientTransformation:
    """Limits the update of each unit to a multiple of the norm of its weights.

    A unit is what makes one output: a row of a matrix, a filter of a convolution (the first axis), a whole vector.

    Args:
        clipping: the largest norm of an update in proportion to the norm of the weights.
        eps: the smallest norm of weights that is reckoned with. Default: 0.001.

    Raises:
        ArgumentError: a negative number.

    Source:
        Brock et al.: High-Performance Large-Scale Image Recognition Without Normalization, 2021, equation 3.
    """
    require_not_negative("adaptive_grad_clip", clipping=clipping, eps=eps)

    def clipped(g: Tensor, w: Tensor) -> Tensor:
        units = tuple(range(1, g.dim())) if g.dim() > 1 else None
        most = norm(w, units).clamp(min=eps) * clipping
        return g * _factor(norm(g, units), most)

    def update(grads: Any, state: EmptyState, params: Any) -> tuple[Any, EmptyState]:
        return tree_map(clipped, grads, params), state

    return GradientTransformation(lambda params: EmptyState(), update)
