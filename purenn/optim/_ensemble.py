"""Training many models at once, as one batched step."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from purenn import random
from purenn.optim._transformation import GradientTransformation, apply_updates
from purenn.transforms import jit as jitted
from purenn.transforms import value_and_grad, vmap
from purenn.tree import is_stateful, leaves

M = TypeVar("M")


def fit_ensemble(
    loss: Callable[..., Any],
    optimizer: GradientTransformation,
    models: M,
    batches: Iterable[tuple[Any, ...]],
    *,
    shared: bool = True,
    key: Tensor | None = None,
    jit: bool = False,
) -> tuple[M, Tensor]:
    """Train all models of an ensemble, one step for each batch.

    Args:
        loss: ``loss(model, *batch)`` of one model, with ``key=`` if a key is given; returns a scalar, or ``(scalar, new
            model)`` if the models are stateful, so that their new buffers are kept.
        optimizer: as `pn.optim.adam`; each model has a state of its own.
        models: stacked along a leading axis, as from `pn.ensemble`.
        batches: tuples of arguments for the loss.
        shared: whether all models see the same batch. If False, every tensor of a batch has a leading axis with one
            entry for each model (bootstrap samples, different augmentations). Default: True.
        key: random key, split among steps and models; without one the loss gets none. Default: None.
        jit: whether to compile the step. Default: False.

    Returns:
        The trained models, and the losses ``[steps, models]``.

    Raises:
        BatchingError: the leading axes differ.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, linear
        >>> models = pn.ensemble(Linear.init)(pn.random.split(pn.random.key(0), 4), 3, 1)
        >>> loss = lambda p, x, y: (linear(p, x) - y).square().mean()
        >>> batches = [(torch.eye(3), torch.ones(3, 1))] * 50
        >>> models, losses = pn.optim.fit_ensemble(loss, pn.optim.sgd(0.3), models, batches)
        >>> losses.shape, bool((losses[-1] < 0.01).all())
        (torch.Size([50, 4]), True)
    """
    stateful = is_stateful(models)
    differentiate = value_and_grad(loss, has_aux=stateful)

    def step(model: Any, state: Any, own: Tensor | None, batch: tuple[Any, ...]) -> tuple[Any, Any, Tensor]:
        value, grads = differentiate(model, *batch, **({} if own is None else {"key": own}))
        updates, state = optimizer.update(grads, state, model)
        if stateful:
            # The new model is the old one with new buffers, so the updates fit it as well.
            value, model = value
        return apply_updates(model, updates), state, value

    count = len(leaves(models)[0])
    many = vmap(step, in_dims=(0, 0, None if key is None else 0, 0 if not shared else None))
    run = jitted(many) if jit else many
    states = vmap(optimizer.init)(models)
    losses = []
    for number, batch in enumerate(batches):
        own = None if key is None else random.split(random.fold_in(key, number), count)
        models, states, value = run(models, states, own, tuple(batch))
        losses.append(value)
    return models, torch.stack(losses) if losses else torch.zeros(0, count)
