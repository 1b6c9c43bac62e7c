"""Gradients of functions that have none, by evolution strategies: from the values at random points nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, GradientError
from purenn.transforms import vmap
from purenn.transforms._leaves import scalar_output
from purenn.tree import container, leaves, named_leaves, partition
from purenn.tree import map as tree_map
from purenn.tree._walk import quoted, short


def evolution_gradient(
    fn: Callable[..., Any],
    *,
    std: float | Tensor,
    pairs: int = 32,
    chunk_size: int | None = None,
    vectorized: bool = True,
) -> Callable[..., tuple[Tensor, Any]]:
    """A gradient estimate that needs no derivative, by antithetic evolution strategies.

    It is unbiased for the gradient of the smoothed function ``E fn(params + std * noise)`` with standard normal noise,
    which exists for steps, counts and whatever else `fn` may compute. Its variance grows with the number of parameters
    and falls with `pairs`.

    Args:
        fn: ``fn(params, *args)``, a scalar tensor.
        std: standard deviation of the noise, a number or a tensor without dimensions.
        pairs: the number of directions; each is tried forwards and backwards. Default: 32.
        chunk_size: how many pairs to compute at a time; all by default.
        vectorized: whether to compute the pairs by `pn.vmap`. If False, a loop calls `fn` with ordinary tensors, so
            that it may do anything. Default: True.

    Returns:
        ``estimate(key, params, *args) -> (value, gradient)``: the mean of all values, and a tree like that of
        `pn.grad`.

    Raises:
        ArgumentError: a standard deviation that is not positive, or no pairs.
        GradientError: when called: nothing to differentiate, complex parameters, or a value that is no real scalar.

    Source:
        Salimans et al.: Evolution Strategies as a Scalable Alternative to Reinforcement Learning, 2017. Nesterov,
        Spokoiny: Random Gradient-Free Minimization of Convex Functions, 2017, equation 26.

    Example:
        >>> import torch, purenn as pn
        >>> count = lambda p: (p["w"] > 0).float().sum()
        >>> estimate = pn.meta.evolution_gradient(count, std=0.1, pairs=1000)
        >>> _, gradient = estimate(pn.random.key(0), {"w": torch.tensor([0.0, 5.0])})
        >>> gradient["w"].round().abs()  # exactly: 1 / (0.1 sqrt(2 pi)), about 4, and 0
        tensor([4., 0.])
    """
    _require_options("evolution_gradient", std, pairs)

    def estimate(key: Tensor, params: Any, *args: Any) -> tuple[Tensor, Any]:
        trained = _trained("evolution_gradient", params)

        def pair(key: Tensor) -> tuple[Tensor, Any]:
            noise = _noise(key, trained)
            forwards, backwards = [
                scalar_output("evolution_gradient", fn(_moved(params, noise, sign * std), *args)) for sign in (1, -1)
            ]
            slope = (forwards - backwards) / (2 * std)
            return (forwards + backwards) / 2, tree_map(lambda x: (slope * x).to(x.dtype), noise)

        with torch.no_grad():
            parts = random.split(key, pairs).split(chunk_size or pairs)
            sums = [_sums(vmap(pair)(keys) if vectorized else _stacked([pair(k) for k in keys])) for keys in parts]
            return tree_map(lambda *totals: torch.stack(totals).sum(0) / pairs, *sums)

    return estimate


@container
class PersistentState:
    """State of `persistent_evolution`.

    Attributes:
        inner: the inner state of each direction, forwards and backwards, ``[pairs, 2, ...]``.
        shift: the sum of all noise so far, ``[pairs, ...]``.
    """

    inner: Any
    shift: Any


class PersistentEvolution(NamedTuple):
    """What `persistent_evolution` returns.

    Attributes:
        init: ``init(params, inner) -> state``, at the beginning of the inner problem.
        estimate: ``estimate(key, params, state, *args) -> (value, gradient, state)`` of one truncation.
    """

    init: Callable[[Any, Any], PersistentState]
    estimate: Callable[..., tuple[Tensor, Any, PersistentState]]


def persistent_evolution(
    unroll: Callable[..., tuple[Any, Any]], *, std: float | Tensor, pairs: int = 32, chunk_size: int | None = None
) -> PersistentEvolution:
    """Unbiased gradient estimates from truncations of a long inner problem, by persistent evolution strategies.

    An inner problem, say the training of a network under hyper-parameters, is cut into pieces, and the parameters are
    updated after each. What is estimated after each piece is its part in the gradient of the whole: unlike truncated
    backpropagation it knows how the parameters have acted through earlier pieces.

    Args:
        unroll: ``unroll(params, inner, *args) -> (loss, inner)``: a piece of the inner problem, a scalar and the inner
            state after it, a tree of tensors that looks like the one before.
        std: standard deviation of the noise, a number or a tensor without dimensions.
        pairs: the number of directions; each is tried forwards and backwards. Default: 32.
        chunk_size: how many pairs to compute at a time; all by default.

    Returns:
        The pure functions ``init(params, inner) -> state`` and
        ``estimate(key, params, state, *args) -> (value, gradient, state)``. Start again with ``init`` where the inner
        problem does.

    Raises:
        ArgumentError: a standard deviation that is not positive, or no pairs.
        GradientError: when called: nothing to differentiate, complex parameters, or a loss that is no real scalar.

    Source:
        Vicol, Metz, Sohl-Dickstein: Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent
        Evolution Strategies, 2021, algorithm 2.

    Example:
        >>> import torch, purenn as pn
        >>> def unroll(rate, w):
        ...     w = w - rate * w
        ...     return w.square(), w
        >>> pes = pn.meta.persistent_evolution(unroll, std=0.01, pairs=100)
        >>> rate, state = torch.tensor(0.1), pes.init(torch.tensor(0.1), torch.tensor(1.0))
        >>> for key in pn.random.split(pn.random.key(0), 3):
        ...     loss, gradient, state = pes.estimate(key, rate, state)
        >>> bool(gradient < 0)
        True
    """
    _require_options("persistent_evolution", std, pairs)

    def init(params: Any, inner: Any) -> PersistentState:
        trained = _trained("persistent_evolution", params)
        both = tree_map(lambda x: x.detach().expand(pairs, 2, *x.shape).clone(), inner)
        return PersistentState(both, tree_map(lambda w: w.new_zeros((pairs, *w.shape)), trained))

    def estimate(key: Tensor, params: Any, state: PersistentState, *args: Any) -> tuple[Tensor, Any, PersistentState]:
        trained = _trained("persistent_evolution", params)

        def pair(key: Tensor, inner: Any, shift: Any) -> tuple[Tensor, Any, PersistentState]:
            noise = _noise(key, trained)
            shift = tree_map(lambda total, x: total + std * x, shift, noise)
            ends = [
                unroll(_moved(params, noise, sign * std), tree_map(lambda x, n=n: x[n], inner), *args)
                for n, sign in enumerate((1, -1))
            ]
            forwards, backwards = [scalar_output("persistent_evolution", loss) for loss, _ in ends]
            slope = (forwards - backwards) / (2 * std * std)
            after = tree_map(lambda one, other: torch.stack([one, other]), ends[0][1], ends[1][1])
            gradient = tree_map(lambda total: (slope * total).to(total.dtype), shift)
            return (forwards + backwards) / 2, gradient, PersistentState(after, shift)

        with torch.no_grad():
            batched = vmap(pair, chunk_size=chunk_size)
            values, gradients, new = batched(random.split(key, pairs), state.inner, state.shift)
            return values.mean(), tree_map(lambda x: x.mean(0), gradients), new

    return PersistentEvolution(init, estimate)


def _require_options(name: str, std: float | Tensor, pairs: int) -> None:
    if not isinstance(std, Tensor) and not std > 0:
        raise ArgumentError(f"{name}: std must be positive, got {std}.")
    if pairs < 1:
        raise ArgumentError(f"{name}: pairs must be at least 1, got {pairs}.")


def _trained(name: str, params: Any) -> Any:
    trained = partition(params)[0]
    if not leaves(trained):
        raise GradientError(f"{name}: the parameters have nothing to differentiate: no floating leaf that is trained.")
    for path, leaf in named_leaves(trained):
        if leaf.is_complex():
            raise GradientError(f"{name}: {quoted(path)} is {short(leaf)}, but the noise is real.")
    return tree_map(lambda leaf: leaf.detach(), trained)


def _noise(key: Tensor, trained: Any) -> Any:
    keys = iter(random.split(key, len(leaves(trained))).unbind(0))
    return tree_map(lambda w: random.normal(next(keys), tuple(w.shape), dtype=w.dtype), trained)


def _moved(params: Any, noise: Any, factor: float | Tensor) -> Any:
    return tree_map(lambda w, x: (w + factor * x).to(w.dtype), params, noise)


def _stacked(results: list[Any]) -> Any:
    return tree_map(lambda *rows: torch.stack(rows), *results)


def _sums(results: Any) -> Any:
    return tree_map(lambda rows: rows.sum(0), results)
