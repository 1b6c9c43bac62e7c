"""Transformations one after the other."""

from typing import Any

from purenn.errors import ArgumentError
from purenn.optim._transformation import GradientTransformation, with_state
from purenn.tree import container


@container
class ChainState:
    """State of `chain`.

    Attributes:
        states: the state of each transformation.
    """

    states: tuple[Any, ...]


def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Each transformation gets the updates of the one before; the first one gets the gradients.

    `step` takes the fast path of the last one, so the optimiser should stand there.

    Raises:
        ArgumentError: no transformation.

    Example:
        >>> import torch, purenn as pn
        >>> optimizer = pn.optim.chain(pn.optim.clip_by_global_norm(1.0), pn.optim.adam(1e-3))
    """
    if not transforms:
        raise ArgumentError("chain needs at least one transformation, got none.")
    *before, last = transforms

    def init(params: Any) -> ChainState:
        return ChainState(tuple([transform.init(params) for transform in transforms]))

    def prepared(grads: Any, state: ChainState, params: Any) -> tuple[Any, list[Any]]:
        states = []
        for transform, inner in zip(before, state.states, strict=False):
            grads, inner = transform.update(grads, inner, params)
            states.append(inner)
        return grads, states

    def update(grads: Any, state: ChainState, params: Any) -> tuple[Any, ChainState]:
        grads, states = prepared(grads, state, params)
        updates, inner = last.update(grads, state.states[-1], params)
        return updates, ChainState((*states, inner))

    def step(params: Any, grads: Any, state: ChainState, donate: bool) -> tuple[Any, ChainState]:
        grads, states = prepared(grads, state, params)
        params, inner = last.step(params, grads, state.states[-1], donate=donate)
        return params, ChainState((*states, inner))

    return with_state("chain", ChainState, init, update, step)
