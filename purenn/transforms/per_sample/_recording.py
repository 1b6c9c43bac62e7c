"""`record`: from a loss and a batch to the record of its per-example gradients."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from purenn import random
from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.transforms._vmap import vmap
from purenn.transforms.per_sample._batching import Whole, of_one
from purenn.transforms.per_sample._engine import NAME, Recorded, run
from purenn.transforms.per_sample._grouped import Grouped, sums_of
from purenn.transforms.per_sample._record import Record
from purenn.tree._walk import short

P = TypeVar("P")
#: Bytes of per-example gradients that a record keeps by default.
BUDGET = 256 << 20


def record(
    f: Callable[..., Tensor],
    p: P,
    batch: Any,
    *,
    in_dims: Any = 0,
    batched: bool = False,
    segments: Tensor | None = None,
    num_segments: int | None = None,
    microbatch: int | None = None,
    budget: int = BUDGET,
    key: Tensor | None = None,
) -> Record[P]:
    """Run one forward and one backward pass over a batch, and keep what the gradient of each example is made of.

    The loss runs under vmap for the forward pass alone; the backward pass computes gradients of activations only. What
    is asked of the record is then found in the cheapest form: the norm of a matrix's gradient without that gradient,
    a weighted sum as one ordinary gradient. A parameter that meets an operation for which there is no rule has a copy
    for each example there, so the result is exact for every function that `pn.vmap(pn.grad(f))` takes.

    Args:
        f: the loss of one example, a real scalar: ``f(p, *example)``.
        p: the parameters; differentiated are floating leaves that are no buffers and not frozen.
        batch: the stacked inputs, a tuple with one tree of tensors for each argument, or a single tree.
        in_dims: the axis of the examples in each of them, as in `pn.vmap`. Several rows of one unit that are one axis
            more in every input are one example: `f` then sums over them.
        batched: whether `f` is a function of a batch that returns one loss for each example, ``[n]``. That it does not
            mix the examples is checked when it is first used with such arguments, except under `pn.jit`.
        segments: ``[rows]``: to which unit (a user, a document) each row belongs; the record is then one of units,
            whose losses and gradients are sums over their rows.
        num_segments: how many units there are; one more than the largest of `segments` by default.
        microbatch: how many examples to run at a time; every question to the record then runs all of them anew. All
            at once by default.
        budget: bytes of gradients of single examples that may be kept for a second use. Default: 256 MiB.
        key: a random key, from which every example gets one of its own, passed as ``key=``.

    Raises:
        ArgumentError: the options do not fit each other or the batch.
        GradientError: nothing to differentiate, or the loss is no real scalar.
        BatchingError: the loss mixes examples, or does what cannot be batched.
        MutationError: the loss writes into what it must not.

    Source:
        Bu, Wang, Zha, Karypis: Differentially Private Optimization on Large Model at Small Cost, 2023, for the two
        steps; see also `Record`.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> p, x, y = Linear.init(pn.random.key(0), 3, 1), torch.randn(8, 3), torch.randn(8, 1)
        >>> record = pn.per_sample.record(lambda p, x, y: (p(x) - y).square().sum(), p, (x, y))
        >>> record.norms().shape, record.clipped_sum(1.0).weight.shape, record.gram().shape
        (torch.Size([8]), torch.Size([1, 3]), torch.Size([8, 8]))
    """
    inputs = tuple(batch) if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields") else (batch,)
    if batched and any(dim not in (0, None) for dim in _dims(in_dims)):
        raise ArgumentError(f"{NAME}: with batched=True the examples must be axis 0 of every input, got {in_dims!r}.")
    if segments is not None and microbatch is not None:
        raise ArgumentError(
            f"{NAME}: give segments or microbatch, not both: the rows of a unit must be in one piece. Cut the batch "
            f"between units yourself."
        )
    if microbatch is not None and (not isinstance(microbatch, int) or microbatch < 1):
        raise ArgumentError(f"{NAME}: microbatch must be a whole number, at least 1, got {microbatch!r}.")
    loss = of_one(f, NAME) if batched else f
    count = _count(inputs, in_dims) if key is not None or microbatch is not None or segments is not None else 0
    keys = None if key is None else random.split(key, count)

    def piece(given: tuple, keys: Tensor | None, pair: tuple | None = None) -> Recorded:
        if not batched:
            return run(loss, p, given, in_dims, keys)
        whole = Whole(f, NAME, p, pair or given, in_dims, key)
        with whole.explained():
            recorded = run(loss, p, given, in_dims, keys)
        whole.require_independent(recorded.losses)
        return recorded

    def whole() -> Recorded:
        recorded = piece(inputs, keys)
        return recorded if segments is None else _by_unit(recorded, segments, num_segments, count)

    def in_pieces() -> Iterator[Recorded]:
        assert microbatch is not None
        for start in range(0, max(count, 1), microbatch):
            stop = min(start + microbatch, count)
            # An example alone shows nothing of how it mixes with others.
            pair = _slice(inputs, in_dims, start, start + 2) if microbatch == 1 and start + 2 <= count else None
            own = _slice(inputs, in_dims, start, stop)
            yield piece(own, None if keys is None else keys[start:stop], pair)

    if microbatch is not None:
        return Record(in_pieces, budget)
    recorded = [whole()]
    return Record(lambda: recorded, budget)


def _dims(in_dims: Any) -> list[Any]:
    return optree.tree_leaves(in_dims, none_is_leaf=True)


def _count(inputs: tuple, in_dims: Any) -> int:
    return len(vmap(lambda *_: torch.zeros(()), in_dims)(*inputs))


def _slice(inputs: tuple, in_dims: Any, start: int, stop: int) -> tuple:
    dims = tuple(in_dims) if isinstance(in_dims, (tuple, list)) else (in_dims,) * len(inputs)
    return tuple(_cut(value, dim, start, stop) for value, dim in zip(inputs, dims, strict=True))


def _cut(value: Any, dims: Any, start: int, stop: int) -> Any:
    def cut(leaf: Any, dim: int | None) -> Any:
        return leaf if dim is None or not isinstance(leaf, Tensor) else leaf.narrow(dim, start, stop - start)

    if dims is None or isinstance(dims, int):
        return optree.tree_map(lambda leaf: cut(leaf, dims), value)
    return optree.tree_map(lambda dim, leaf: cut(leaf, dim), dims, value, none_is_leaf=True)


def _by_unit(recorded: Recorded, segments: Tensor, num_segments: int | None, rows: int) -> Recorded:
    if not isinstance(segments, Tensor):
        raise ArgumentError(f"{NAME}: segments must be a tensor of whole numbers, got a {type(segments).__name__}.")
    if segments.shape != (rows,) or segments.is_floating_point() or segments.dtype == torch.bool:
        raise ArgumentError(
            f"{NAME}: segments must be whole numbers, one for each of the {rows} rows, got {short(segments)}."
        )
    count = int(segments.max()) + 1 if num_segments is None else num_segments
    if is_plain(segments) and rows and not 0 <= int(segments.min()) <= int(segments.max()) < count:
        raise ArgumentError(
            f"{NAME}: segments must be from 0 to {count - 1}, got {int(segments.min())} to {int(segments.max())}."
        )
    parts = [None if part is None else Grouped(part, segments, count) for part in recorded.parts]
    losses = sums_of(recorded.losses, segments, count)
    return Recorded(recorded.argument, losses, list(parts), recorded.has_inputs)
