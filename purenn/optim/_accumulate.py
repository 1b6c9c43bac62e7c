"""Large batches in parts: one step for the mean of several gradients."""

from typing import Any

import torch
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn.errors import ArgumentError
from purenn.optim._hyperparameters import as_number
from purenn.optim._transformation import GradientTransformation, apply_updates, with_state, zeros_like
from purenn.tree import container
from purenn.tree import map as tree_map


@container
class AccumulateState:
    """State of `accumulate`.

    Attributes:
        count: number of gradients since the last step, an int64 scalar.
        mean: sum of these gradients divided by the number of all that make a step, a tree like the parameters.
        inner: the state of the optimiser.
    """

    count: Tensor
    mean: Any
    inner: Any


def accumulate(optimizer: GradientTransformation, every: int) -> GradientTransformation:
    """An optimiser that makes one step for the mean of every `every` gradients, and none in between.

    Args:
        optimizer: what makes the steps; its own count and schedules go by steps, not by gradients.
        every: how many gradients make a step.

    Raises:
        ArgumentError: `every` is less than 1.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ArgumentError(f"accumulate: every must be an integer of at least 1, got {every!r}.")

    def init(params: Any) -> AccumulateState:
        return AccumulateState(torch.zeros((), dtype=torch.int64), zeros_like(params), optimizer.init(params))

    def added(grads: Any, state: AccumulateState) -> Any:
        return tree_map(lambda mean, g: in_dtype(mean.dtype, mean + g / every), state.mean, grads)

    def update(grads: Any, state: AccumulateState, params: Any) -> tuple[Any, AccumulateState]:
        mean, done = added(grads, state), as_number(state.count)
        nothing = tree_map(torch.zeros_like, mean)
        if not isinstance(done, Tensor) and done + 1 < every:
            return nothing, AccumulateState(state.count + 1, mean, state.inner)
        updates, inner = optimizer.update(mean, state.inner, params)
        if not isinstance(done, Tensor):
            return updates, AccumulateState(torch.zeros_like(state.count), nothing, inner)
        # Where the number is not known, both are calculated and one is taken.
        now = done + 1 >= every
        return (
            either(now, updates, nothing),
            AccumulateState(
                torch.where(now, 0, state.count + 1), either(now, nothing, mean), either(now, inner, state.inner)
            ),
        )

    def step(params: Any, grads: Any, state: AccumulateState, donate: bool) -> tuple[Any, AccumulateState]:
        done = as_number(state.count)
        if isinstance(done, Tensor):
            updates, state = update(grads, state, params)
            return apply_updates(params, updates), state
        mean = added(grads, state)
        if done + 1 < every:
            return params, AccumulateState(state.count + 1, mean, state.inner)
        params, inner = optimizer.step(params, mean, state.inner, donate=donate)
        nothing = tree_map(torch.zeros_like, mean)
        return params, AccumulateState(torch.zeros_like(state.count), nothing, inner)

    return with_state("accumulate", AccumulateState, init, update, step)


def either(condition: Tensor, yes: Any, no: Any) -> Any:
    """One of two trees of the same structure, by a boolean scalar."""
    return tree_map(lambda a, b: torch.where(condition.to(a.device), a, b), yes, no)
