"""Averages of the parameters over the steps: an exponential moving average, and Lookahead."""

from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._accumulate import either
from purenn.optim._hyperparameters import Hyperparameter, as_number, require_fraction
from purenn.optim._transformation import GradientTransformation, apply_updates, with_state
from purenn.tree import container, partition
from purenn.tree import map as tree_map


@container
class EmaState:
    """State of `ema`.

    Attributes:
        count: number of steps done, an int64 scalar.
        average: the average of the parameters, a tree like them with holes where they are not trained.
        inner: the state of the optimiser.
    """

    count: Tensor
    average: Any
    inner: Any


def ema(optimizer: GradientTransformation, decay: Hyperparameter) -> GradientTransformation:
    """An optimiser that also keeps an exponential moving average of the parameters in its state.

    The steps are those of the optimiser. Evaluate ``pn.tree.map(lambda w, mean: mean, params, state.average)``.

    Args:
        optimizer: what makes the steps.
        decay: how much of the average is kept in each step: a float, a tensor without dimensions or a schedule (a
            growing one warms up).

    Raises:
        ArgumentError: a decay outside [0, 1).

    Source:
        Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992.
    """
    require_fraction("ema", decay=decay)

    def init(params: Any) -> EmaState:
        average = tree_map(torch.clone, partition(params)[0])
        return EmaState(torch.zeros((), dtype=torch.int64), average, optimizer.init(params))

    def following(state: EmaState, params: Any, inner: Any) -> EmaState:
        share = 1 - (decay(as_number(state.count)) if callable(decay) else decay)

        def moved(mean: Tensor, w: Tensor) -> Tensor:
            return (mean + (w - mean) * (share.to(w.device) if isinstance(share, Tensor) else share)).to(mean.dtype)

        return EmaState(state.count + 1, tree_map(moved, state.average, params), inner)

    def update(grads: Any, state: EmaState, params: Any) -> tuple[Any, EmaState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        return updates, following(state, apply_updates(params, updates), inner)

    def step(params: Any, grads: Any, state: EmaState, donate: bool) -> tuple[Any, EmaState]:
        params, inner = optimizer.step(params, grads, state.inner, donate=donate)
        return params, following(state, params, inner)

    return with_state("ema", EmaState, init, update, step)


@container
class LookaheadState:
    """State of `lookahead`.

    Attributes:
        count: number of steps since the last synchronisation, an int64 scalar.
        slow: the slow parameters, a tree like the parameters with holes where they are not trained.
        inner: the state of the optimiser.
    """

    count: Tensor
    slow: Any
    inner: Any


def lookahead(
    optimizer: GradientTransformation, *, every: int = 5, share: float | Tensor = 0.5
) -> GradientTransformation:
    """An optimiser that goes some steps ahead, and then back to a point between where it came from and where it is.

    Args:
        optimizer: what makes the steps.
        every: number of steps before each return. Default: 5.
        share: how far along the way to the new parameters the point is, a number or a tensor without dimensions.
            Default: 0.5.

    Raises:
        ArgumentError: `every` is less than 1, or a share outside (0, 1].

    Source:
        Zhang et al.: Lookahead Optimizer, k Steps Forward, 1 Step Back, 2019, algorithm 1.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ArgumentError(f"lookahead: every must be an integer of at least 1, got {every!r}.")
    if not isinstance(share, Tensor) and not 0 < share <= 1:
        raise ArgumentError(f"lookahead: share must be above 0 and at most 1, got {share}.")

    def init(params: Any) -> LookaheadState:
        slow = tree_map(torch.clone, partition(params)[0])
        return LookaheadState(torch.zeros((), dtype=torch.int64), slow, optimizer.init(params))

    def following(params: Any, state: LookaheadState, inner: Any) -> tuple[Any, LookaheadState]:
        # The parameters after the optimiser's step, and the state.
        done = as_number(state.count)
        if not isinstance(done, Tensor) and done + 1 < every:
            return params, LookaheadState(state.count + 1, state.slow, inner)

        def between(slow: Tensor, fast: Tensor) -> Tensor:
            part = share.to(fast.device) if isinstance(share, Tensor) else share
            return (slow + (fast - slow) * part).to(slow.dtype)

        slow = tree_map(between, state.slow, params)
        if not isinstance(done, Tensor):
            # Copies, since the next step may be told to write into the parameters.
            copied = tree_map(lambda _, new: new.clone(), params, slow)
            return copied, LookaheadState(torch.zeros_like(state.count), slow, inner)
        now = done + 1 >= every
        count = torch.where(now, 0, state.count + 1)
        new = tree_map(lambda w, other: torch.where(now.to(w.device), other, w), params, slow)
        return new, LookaheadState(count, either(now, slow, state.slow), inner)

    def update(grads: Any, state: LookaheadState, params: Any) -> tuple[Any, LookaheadState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        new, state = following(apply_updates(params, updates), state, inner)
        # Also leaves without a gradient go back.
        return tree_map(lambda _, after, before: after - before, state.slow, new, params), state

    def step(params: Any, grads: Any, state: LookaheadState, donate: bool) -> tuple[Any, LookaheadState]:
        params, inner = optimizer.step(params, grads, state.inner, donate=donate)
        return following(params, state, inner)

    return with_state("lookahead", LookaheadState, init, update, step)
