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
from purenn.transforms._translate import translated
from purenn.tree._walk import Structure, flatten, one_level, short

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
    if randomness not in ("error", "same", "different"):
        raise ArgumentError(f"vmap: randomness must be 'error', 'same' or 'different', got {randomness!r}.")
    if chunk_size is not None and chunk_size < 1:
        raise ArgumentError(f"vmap: chunk_size must be at least 1, got {chunk_size}.")

    @functools.wraps(fn)
    def batched(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return torch.func.vmap(fn, in_dims, out_dims, randomness, chunk_size=chunk_size)(*args, **kwargs)
        axes = _axes(in_dims, args)
        sizes: list[tuple[int, str]] = []
        everything: list[Any] = []
        dims: list[int | None] = []
        labels = [f"argument {n}" for n in range(len(args))] + [f"argument {name!r}" for name in kwargs]
        specs = []
        for label, value, axis in zip(labels, (*args, *kwargs.values()), (*axes, *[0] * len(kwargs)), strict=True):
            leaves, structure = flatten(value)
            specs.append((structure.spec, len(leaves)))
            along = _broadcast(label, axis, value)
            for path, leaf, dim in zip(structure.paths, leaves, along, strict=True):
                where = f"{label}, {path!r}" if path else label
                everything.append(leaf)
                dims.append(_check(where, leaf, dim, sizes))
        if not sizes:
            raise BatchingError(
                f"vmap: there is nothing to batch over: no tensor among the arguments has an axis in in_dims={in_dims}."
            )

        outcome: dict[str, Any] = {}
        call: Callable[..., Any] = fn

        def flat(*leaves: Any) -> tuple[Any, ...]:
            rebuilt, start = [], 0
            for spec, length in specs:
                rebuilt.append(optree.tree_unflatten(spec, leaves[start : start + length]))
                start += length
            named = dict(zip(kwargs, rebuilt[len(args) :], strict=True))
            out = call(*rebuilt[: len(args)], **named)
            results, structure = flatten(out)
            _check_output(structure, results)
            outcome.update(spec=structure.spec, dims=_broadcast("the result", out_dims, out, option="out_dims"))
            _check_out_dims(structure, results, outcome["dims"])
            return tuple(results)

        with translated("vmap"):
            if chunk_size is None:
                stacked = _at_once(flat, sizes[0][0], dims, everything, randomness)
            else:
                stacked = torch.func.vmap(flat, tuple(dims), 0, randomness, chunk_size=chunk_size)(*everything)
        # A result that does not depend on the examples comes as one tensor seen many times: make it many.
        own = [leaf.contiguous() if leaf.stride(0) == 0 and leaf.shape[0] > 1 else leaf for leaf in stacked]
        moved = [leaf if dim == 0 else leaf.movedim(0, dim) for leaf, dim in zip(own, outcome["dims"], strict=True)]
        return optree.tree_unflatten(outcome["spec"], moved)

    return batched


def _at_once(
    flat: Callable[..., tuple[Any, ...]], size: int, dims: list[int | None], leaves: list[Any], randomness: str
) -> list[Any]:
    # What torch.func.vmap does once it has flattened and checked its arguments, which are flat and checked here.
    lazy_load_decompositions()
    with vmap_increment_nesting(size, randomness) as level:
        pairs = zip(leaves, dims, strict=True)
        batched = [leaf if dim is None else _add_batch_dim(leaf, dim % leaf.dim(), level) for leaf, dim in pairs]
        return [_remove_batch_dim(result, level, size, 0) for result in flat(*batched)]


def _axes(in_dims: Any, args: tuple) -> tuple[Any, ...]:
    if not isinstance(in_dims, (tuple, list)):
        return (in_dims,) * len(args)
    if len(in_dims) != len(args):
        raise ArgumentError(
            f"vmap: in_dims has {len(in_dims)} entries, but the function was called with {len(args)} positional "
            f"arguments: one entry for each, None for an argument that all examples share."
        )
    return tuple(in_dims)


def _broadcast(label: str, axis: Any, value: Any, option: str = "in_dims") -> list[Any]:
    # One axis for every leaf of the argument. None is an axis here, not an absent child.
    if (axis is None and option == "in_dims") or (isinstance(axis, int) and not isinstance(axis, bool)):
        return [axis] * optree.tree_structure(value).num_leaves
    axes, values = one_level(axis), one_level(value)
    if axes is None or values is None or type(axis) is not type(value) or axes.entries != values.entries:
        raise ArgumentError(
            f"vmap: the entry of {option} for {label} must be an int{', None,' if option == 'in_dims' else ''} or a "
            f"tree like it; got {axis!r} for {short(value) if values is None else f'a {type(value).__name__}'}."
        )
    pairs = zip(axes.children, values.children, strict=True)
    return [dim for below, child in pairs for dim in _broadcast(label, below, child, option)]


def _check(where: str, leaf: Any, dim: int | None, sizes: list[tuple[int, str]]) -> int | None:
    if dim is None or not isinstance(leaf, Tensor):
        return None
    if not -leaf.dim() <= dim < leaf.dim():
        raise BatchingError(f"vmap: {where} is {short(leaf)} and has no axis {dim} to batch over; use None in in_dims.")
    size = leaf.shape[dim]
    # No dict: the length can be a symbol, which has no hash.
    if all(size != other for other, _ in sizes):
        sizes.append((size, f"{where} is {short(leaf)} with length {size} on axis {dim}"))
    if len(sizes) > 1:
        raise BatchingError(
            f"vmap: the axes to batch over differ in length: {' but '.join(text for _, text in sizes)}. Use None in "
            f"in_dims for an argument that all examples share."
        )
    return dim


def _check_out_dims(structure: Structure, leaves: list[Tensor], dims: list[int]) -> None:
    for path, leaf, dim in zip(structure.paths, leaves, dims, strict=True):
        if not -leaf.dim() - 1 <= dim <= leaf.dim():
            where = f" at {path!r}" if path else ""
            raise ArgumentError(f"vmap: the result {short(leaf)}{where} has no place for a new axis {dim} in out_dims.")


def _check_output(structure: Structure, leaves: list[Any]) -> None:
    for path, leaf in zip(structure.paths, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            where = f" at {path!r}" if path else ""
            raise BatchingError(
                f"vmap: the function must return tensors, got {short(leaf)}{where}: return it as a tensor, or not "
                f"at all."
            )
