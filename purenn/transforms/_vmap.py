"""Batching a function over a new axis of its arguments."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import optree
import torch
from torch import Tensor
from torch._functorch.vmap import (
    _add_batch_dim,  # pyright: ignore[reportPrivateImportUsage]
    _remove_batch_dim,  # pyright: ignore[reportPrivateImportUsage]
    lazy_load_decompositions,  # pyright: ignore[reportPrivateImportUsage]
    vmap_increment_nesting,
)

from purenn.errors import ArgumentError, BatchingError
from purenn.transforms import _batching_rules  # noqa: F401
from purenn.transforms._batch import Batch, broadcast, taken_apart
from purenn.transforms._loss_formulas import with_formulas
from purenn.transforms._translate import translated
from purenn.tree._checks import require_function
from purenn.tree._walk import Structure, flatten, short

P = ParamSpec("P")
R = TypeVar("R")


def vmap(
    fn: Callable[P, R],
    in_dims: Any = 0,
    out_dims: Any = 0,
    *,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[P, R]:
    """Batch a function of single examples (or single models) over an axis of its arguments.

    Args:
        fn: the function. Its results are tensors or trees of them.
        in_dims: for every positional argument the axis to batch over, or None for an argument that all examples share:
            one int for all arguments, or a tuple with an entry for each; an entry may be a tree like its argument.
            Leaves that are no tensors, such as Python numbers, are always shared. Keyword arguments are batched over
            axis 0.
        out_dims: where the new axis goes in the results: an int, or a tree of ints.
        randomness: what to do about torch's own generator: "error", "same" or "different". Draws from explicit keys
            (`purenn.random`) need none of it: vmap over the keys.
        chunk_size: how many examples to compute at a time; all by default.

    Returns:
        The batched function.

    Raises:
        ArgumentError: an unknown `randomness`, a `chunk_size` below 1, or `in_dims` or `out_dims` that do not fit.
        BatchingError: the axes differ in length, or `fn` does what cannot be batched.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, linear
        >>> models = pn.vmap(lambda key: Linear.init(key, 3, 2))(pn.random.split(pn.random.key(0), 5))
        >>> pn.vmap(linear, (0, None))(models, torch.ones(4, 3)).shape
        torch.Size([5, 4, 2])
    """
    require_function("vmap", fn)
    if randomness not in ("error", "same", "different"):
        raise ArgumentError(f"vmap: randomness must be 'error', 'same' or 'different', got {randomness!r}.")
    check_chunk_size("vmap", chunk_size)

    @functools.wraps(fn)
    def batched(*args: Any, **kwargs: Any) -> Any:
        return of_batch(fn, taken_apart(in_dims, args, kwargs), out_dims, randomness, chunk_size)

    return batched


def of_batch(
    fn: Callable[..., Any], batch: Batch, out_dims: Any = 0, randomness: str = "error", chunk_size: int | None = None
) -> Any:
    """What the result of `vmap` does with arguments that are taken apart."""
    outcome: dict[str, Any] = {}

    def flat(*leaves: Any) -> tuple[Any, ...]:
        out = batch.call(fn, leaves)
        results, structure = flatten(out)
        axes = broadcast("the result", out_dims, out, len(results), option="out_dims")
        _check_results(structure, results, axes)
        outcome.update(spec=structure.spec, dims=axes)
        return tuple(results)

    with translated("vmap"):
        if chunk_size is None or batch.size <= chunk_size:
            stacked = with_formulas(lambda: _at_once(flat, batch, randomness))
        else:
            apply = torch.func.vmap(flat, batch.dims, 0, randomness, chunk_size=chunk_size)
            stacked = with_formulas(lambda: apply(*batch.leaves))
    # A result that does not depend on the examples comes as one tensor seen many times: make it many.
    own = [leaf.contiguous() if leaf.stride(0) == 0 and leaf.shape[0] > 1 else leaf for leaf in stacked]
    moved = [leaf if dim == 0 else leaf.movedim(0, dim) for leaf, dim in zip(own, outcome["dims"], strict=True)]
    return optree.tree_unflatten(outcome["spec"], moved)


def check_chunk_size(name: str, chunk_size: int | None) -> None:
    """Raise an ArgumentError for what is no number of examples."""
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ArgumentError(f"{name}: chunk_size must be an int of at least 1, got {short(chunk_size)}.")


def _at_once(flat: Callable[..., tuple[Any, ...]], batch: Batch, randomness: str) -> list[Any]:
    # What torch.func.vmap does once it has flattened and checked its arguments, which are flat and checked here.
    lazy_load_decompositions()
    with vmap_increment_nesting(batch.size, randomness) as level:
        pairs = zip(batch.leaves, batch.dims, strict=True)
        batched = [leaf if dim is None else _add_batch_dim(leaf, dim, level) for leaf, dim in pairs]
        return [_remove_batch_dim(result, level, batch.size, 0) for result in flat(*batched)]


def _check_results(structure: Structure, leaves: list[Any], dims: list[int]) -> None:
    for about, leaf, dim in zip(structure.leaves, leaves, dims, strict=True):
        where = f" at {about.path!r}" if about.path else ""
        if not isinstance(leaf, Tensor):
            raise BatchingError(
                f"vmap: the function must return tensors, got {short(leaf)}{where}: return it as a tensor, or not "
                f"at all."
            )
        if not -leaf.dim() - 1 <= dim <= leaf.dim():
            raise ArgumentError(f"vmap: the result {short(leaf)}{where} has no place for a new axis {dim} in out_dims.")
