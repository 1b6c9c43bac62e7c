"""Several models of one structure as one tree with a leading axis."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from purenn._modes import runs_at_once
from purenn.errors import ArgumentError, StructureError
from purenn.transforms._vmap import vmap
from purenn.tree._walk import flatten, quoted, short, unflatten

M = TypeVar("M")


def ensemble(init: Callable[..., M]) -> Callable[..., M]:
    """Make many models at once, as one tree: ``ensemble(init)(keys)`` stacks ``init(key)`` over the keys.

    The result has the class of one model, and a leading axis on each of its tensors. ``pn.vmap`` over it applies all
    models (``pn.vmap(apply, in_dims=(0, None))(models, x)``), `pn.tree.unstack` takes it apart, `pn.optim.fit_ensemble`
    trains it, `pn.soup` averages it. Entry by entry the numbers are those of ``init(key)``, bit for bit.

    Args:
        init: makes a model of a key and of further arguments, which all models share.

    Returns:
        A function of keys, ``[models, 2]`` as from `pn.random.split`, and of the further arguments.

    Raises:
        BatchingError: when called: the keys have no leading axis.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, linear
        >>> models = pn.ensemble(Linear.init)(pn.random.split(pn.random.key(0), 5), 3, 2)
        >>> pn.vmap(linear, in_dims=(0, None))(models, torch.ones(7, 3)).shape
        torch.Size([5, 7, 2])
    """

    @functools.wraps(init)
    def many(keys: Tensor, *args: Any, **kwargs: Any) -> M:
        outcome: dict[str, Any] = {}

        def tensors(key: Tensor) -> list[Tensor]:
            leaves, outcome["spec"] = optree.tree_flatten(init(key, *args, **kwargs))  # pyright: ignore[reportArgumentType]
            outcome["leaves"] = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        stacked = iter(vmap(tensors)(keys))
        # Leaves that are no tensors do not depend on the key.
        return unflatten(outcome["spec"], [next(stacked) if leaf is None else leaf for leaf in outcome["leaves"]])

    return many


def soup(models: M, *, weights: Tensor | None = None, score: Callable[[M], Any] | None = None) -> M:
    """One model from many: the average of their parameters.

    Floating and complex leaves are averaged; others (counters) are taken from the first model.

    Args:
        models: models stacked along a leading axis.
        weights: ``[models]``, how much each counts; they are divided by their sum, so that negative ones move away from
            a model. Default: all the same.
        score: if given, the greedy soup: models are taken in the order of their own scores, and one joins the average
            only if it makes the score of the average no worse. Higher is better, NaN is worst. Not together with
            `weights`.

    Raises:
        ArgumentError: both options; weights of another length, that are not finite or whose sum is 0; or `score`
            returns no number.
        StructureError: the leaves share no leading axis.

    Source:
        Wortsman et al.: Model soups: averaging weights of multiple fine-tuned models improves accuracy without
        increasing inference time, 2022; algorithm 1 is the greedy soup.

    Example:
        >>> import torch, purenn as pn
        >>> pn.soup({"w": torch.tensor([[1.0, 2.0], [3.0, 6.0]])})
        {'w': tensor([2., 4.])}
    """
    leaves, structure = flatten(models)
    number: int | None = None
    for path, leaf in zip(structure.paths, leaves, strict=True):
        if isinstance(leaf, Tensor) and (not leaf.dim() or (number is not None and len(leaf) != number)):
            raise StructureError(
                f"soup: {quoted(path)} is {short(leaf)}, where a leading axis "
                f"{'' if number is None else f'of length {number} '}for the models was expected. Stack models with "
                f"pn.tree.stack or make them with pn.ensemble."
            )
        number = len(leaf) if isinstance(leaf, Tensor) else number
    if not number:
        raise StructureError("soup: there are no models: the tree has no tensors, or its leading axis is empty.")
    if weights is not None and score is not None:
        raise ArgumentError("soup takes weights or score, not both.")
    if weights is not None:
        weights = _checked(weights, number)

    def mixed(shares: Tensor, among: Any = slice(None)) -> M:
        return structure.rebuild([_mixed(x, shares, among) if isinstance(x, Tensor) else x for x in leaves])

    if score is None:
        return mixed(torch.ones(number, dtype=torch.float64) if weights is None else weights)

    def average(among: list[int]) -> M:
        # Of these alone, or a model that has diverged would make the others NaN, by 0 * NaN.
        return mixed(torch.ones(len(among), dtype=torch.float64), among)

    scores = [_number(score(average([n]))) for n in range(number)]
    first, *others = sorted(range(number), key=lambda n: -scores[n])
    chosen, best = [first], scores[first]
    for n in others:
        tried = sorted([*chosen, n])
        reached = _number(score(average(tried)))
        if reached >= best:
            chosen, best = tried, reached
    return average(chosen)


def _checked(weights: Any, number: int) -> Tensor:
    if not isinstance(weights, Tensor) or weights.shape != (number,) or weights.is_complex():
        raise ArgumentError(
            f"soup: weights must be a real tensor with one entry for each of the {number} models, got {short(weights)}."
        )
    # In 16 bits a sum soon overflows.
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    if not runs_at_once(weights):
        return weights
    if not weights.isfinite().all():
        raise ArgumentError(f"soup: weights must be finite numbers, got {weights.tolist()}.")
    if weights.sum() == 0:
        raise ArgumentError(
            f"soup: weights are divided by their sum, which must not be 0, got {weights.tolist()}. For a difference of "
            f"models subtract them: pn.tree.map(torch.sub, a, b)."
        )
    return weights


def _number(score: Any) -> float:
    try:
        value = float(score)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"soup: score must return one real number, got {short(score)}.") from error
    return -math.inf if math.isnan(value) else value


def _mixed(leaf: Tensor, shares: Tensor, among: Any) -> Tensor:
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf[0]
    shares = (shares / shares.sum()).to(leaf.device, leaf.dtype)
    return torch.tensordot(shares, leaf[among], 1)
