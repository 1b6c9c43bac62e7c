"""Batching rules for three operations of torch whose own give wrong numbers, without any error.

Of `select_scatter` the derivative is wrong that is taken outside of vmap: the gradient of what is written comes as many
times as the axis is long. `index_fill` writes one example's number into all of them where nothing else is batched, and
`roll` of a single number for each example exchanges the examples. torch keeps rules in one table for the whole process,
so these hold for `torch.func.vmap` as well.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, library

Batched = tuple[Tensor, int]


def _select_scatter(info: Any, in_dims: tuple, x: Tensor, source: Tensor, dim: int, index: int) -> Batched:
    x, source = _whole(info, x, in_dims[0]), _whole(info, source, in_dims[1])
    axis = _axis(x, dim)
    place = x.select(axis, index)  # which says so where there is none
    if source.shape != place.shape:
        sizes = f"src size = {list(source.shape[1:])}, slice size = {list(place.shape[1:])}"
        raise RuntimeError(f"expected src to have a size equal to the slice of self. {sizes}")
    start = index % x.shape[axis]
    return torch.slice_scatter(x, source.unsqueeze(axis), axis, start, start + 1), 0


def _roll(info: Any, in_dims: tuple, x: Tensor, shifts: list[int], dims: tuple[int, ...] = ()) -> Batched:
    x = _whole(info, x, in_dims[0])
    if x.dim() == 1:
        return x.clone(), 0
    if not dims:
        return x.flatten(1).roll(shifts, 1).view(x.shape), 0
    return x.roll(shifts, [_axis(x, dim) for dim in dims]), 0


def _index_fill(info: Any, in_dims: tuple, x: Tensor, dim: int, index: Tensor, value: Tensor) -> Batched:
    x, index, value = _whole(info, x, in_dims[0]), _whole(info, index, in_dims[2]), _whole(info, value, in_dims[3])
    if value.dim() != 1:
        dimensions = f"but got tensor with {value.dim() - 1} dimension(s)"
        raise RuntimeError(f"index_fill_ only supports a 0-dimensional value tensor, {dimensions}.")
    if index.dim() > 2:
        raise RuntimeError("Index has to be a vector/scalar")
    axis, shape = _axis(x, dim), x.shape
    x = x if x.dim() > 1 else x.unsqueeze(1)
    size, examples = x.shape[axis], [len(x), *[1] * (x.dim() - 1)]
    index = torch.where(index < 0, index + size, index).view(len(index), -1)
    places = torch.zeros(len(x), size, dtype=torch.bool, device=x.device).scatter(1, index, True)
    places = places.view([*examples[:axis], size, *examples[axis + 1 :]])
    return torch.where(places, value.to(x.dtype).view(examples), x).view(shape), 0


def _whole(info: Any, x: Tensor, axis: int | None) -> Tensor:
    # The tensor of all examples, the first axis theirs.
    return x.expand(info.batch_size, *x.shape) if axis is None else x.movedim(axis, 0)


def _axis(x: Tensor, dim: int) -> int:
    # Where such a tensor has an example's axis; numbers count as having one.
    count = max(x.dim() - 1, 1)
    if not -count <= dim < count:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-count}, {count - 1}], but got {dim})")
    return dim % count + 1


with warnings.catch_warnings():
    # What torch says of rules that take the place of its own, as is meant here.
    warnings.filterwarnings("ignore", "Warning only once for all operators")
    library.register_vmap("aten::select_scatter", _select_scatter)
    library.register_vmap("aten::roll", _roll)
    library.register_vmap("aten::index_fill.int_Tensor", _index_fill)
