"""Vectors put together bag by bag: as differentiable operations, and by torch's kernel with a derivative of our own.

Bags are rows of equal length, ``[bags, length, size]``, or parts of one row, ``[total, size]``; then ``bag_of``,
``[total]``, tells to which bag each vector belongs.
"""

from typing import Any

import torch
from torch import Tensor

# In the order of the kernel's numbers for them.
MODES = ("sum", "mean", "max")


def find_bags(offsets: Tensor, total: int) -> Tensor:
    """The bag of each of `total` vectors: how many have begun at its place. Those that begin at the end are empty."""
    begun = offsets.new_zeros(total + 1).scatter_add(0, offsets.long(), torch.ones_like(offsets))
    return begun.cumsum(0)[:-1] - 1


def reduce_bags(vectors: Tensor, mode: str, counted: Tensor | None, bag_of: Tensor | None, bags: int) -> Tensor:
    """The sum, mean or maximum of each bag, ``[bags, size]``; zeros where nothing counts.

    Args:
        vectors: what the bags hold.
        mode: one of `MODES`.
        counted: which vectors count; None for all.
        bag_of: the bag of each vector, None for bags of equal length.
        bags: how many bags there are.
    """
    if mode == "max":
        return _maxima(vectors, counted, bags) if bag_of is None else _maxima_of_parts(vectors, counted, bag_of, bags)
    if counted is not None:
        vectors = torch.where(counted.unsqueeze(-1), vectors, 0)
    elif mode == "mean" and bag_of is None and vectors.size(-2):
        return vectors.mean(-2)
    totals = _sums(vectors, bag_of, bags)
    return totals if mode == "sum" else totals / _sizes(vectors, counted, bag_of, bags).clamp(min=1)


def _sums(vectors: Tensor, bag_of: Tensor | None, bags: int) -> Tensor:
    if bag_of is None:
        return vectors.sum(-2)
    return vectors.new_zeros(bags, vectors.size(-1)).index_add(0, bag_of, vectors)


def _sizes(like: Tensor, counted: Tensor | None, bag_of: Tensor | None, bags: int) -> Tensor:
    if counted is None:
        counted = torch.ones(like.shape[:-1], dtype=like.dtype, device=like.device)
    return _sums(counted.to(like.dtype).unsqueeze(-1), bag_of, bags)


def _maxima(vectors: Tensor, counted: Tensor | None, bags: int) -> Tensor:
    if not vectors.size(-2):
        return vectors.sum(-2)
    if counted is None:
        return vectors.max(-2).values
    largest = torch.where(counted.unsqueeze(-1), vectors, -torch.inf).max(-2).values
    return torch.where(counted.any(-1, keepdim=True), largest, 0)


def _maxima_of_parts(vectors: Tensor, counted: Tensor | None, bag_of: Tensor, bags: int) -> Tensor:
    # Where the largest elements are is found first, the first of equal ones, and then they are gathered.
    total, size = vectors.shape
    if not total:
        return vectors.new_zeros(bags, size)
    found = vectors.detach()
    if counted is not None:
        found = torch.where(counted.unsqueeze(-1), found, -torch.inf)
    bag_of = bag_of.unsqueeze(-1).expand(total, size)
    largest = found.new_full((bags, size), -torch.inf).scatter_reduce(0, bag_of, found, "amax")
    wins = found == largest.gather(0, bag_of)
    if counted is not None:
        wins = wins & counted.unsqueeze(-1)
    places = torch.arange(total, device=found.device).unsqueeze(-1)
    first = torch.full_like(largest, total, dtype=torch.long)
    first = first.scatter_reduce(0, bag_of, torch.where(wins, places, total), "amin")
    return torch.where(first < total, vectors.gather(0, first.clamp(max=total - 1)), 0)


class FusedBags(torch.autograd.Function):
    """torch's kernel for parts of one row, with a derivative that is made of differentiable operations.

    It is for calls that nothing transforms. Its arguments are the table, factors of the vectors or None, indices and
    offsets, the number of the mode, and the index that does not count or None.
    """

    # Without `setup_context`, which costs three times as much in each call and serves torch.func only.
    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        factors: Tensor | None,
        indices: Tensor,
        offsets: Tensor,
        mode: int,
        padding_idx: int | None,
    ) -> Tensor:
        ctx.mode, ctx.padding_idx = mode, padding_idx
        y, _, _, winners = torch.embedding_bag(table, indices, offsets, False, mode, False, factors, False, padding_idx)
        ctx.save_for_backward(table, factors, indices, offsets, winners)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, factors, indices, offsets, winners = ctx.saved_tensors
        lengths = torch.diff(offsets, append=offsets.new_full((1,), len(indices)))
        zeros = gradient.new_zeros(table.shape)
        counted, sizes = None, lengths.unsqueeze(-1)
        if ctx.padding_idx is not None:
            counted = indices != ctx.padding_idx
            sizes = _sizes(gradient.new_empty(len(indices), 0), counted, find_bags(offsets, len(indices)), len(offsets))
        if MODES[ctx.mode] == "max":
            of_table = zeros.scatter_add(0, winners.long(), torch.where(sizes > 0, gradient, 0))
            return of_table, None, None, None, None, None
        if MODES[ctx.mode] == "mean":
            gradient = gradient / sizes.clamp(min=1)
        each = gradient.repeat_interleave(lengths, 0, output_size=len(indices))
        if counted is not None:
            each = torch.where(counted.unsqueeze(-1), each, 0)
        of_factors = (each * table[indices]).sum(-1) if ctx.needs_input_grad[1] else None
        if factors is not None:
            each = each * factors.unsqueeze(-1)
        return zeros.index_add(0, indices, each), of_factors, None, None, None, None
