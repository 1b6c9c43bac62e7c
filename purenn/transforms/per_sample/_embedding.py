"""Rules of tables in which vectors are looked up."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn.transforms.per_sample._handle import Handle
from purenn.transforms.per_sample._rows import Rows
from purenn.transforms.per_sample._tape import PHYSICAL_RULES, Tape, rule


@rule(F.embedding)
def _embedding(
    tape: Tape,
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    simple = max_norm is None and not scale_grad_by_freq
    vectors = _looked_up(tape, input, weight, padding_idx) if simple else NotImplemented
    if vectors is NotImplemented and sparse:
        # A gradient for each example has no use for that of few rows.
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    return vectors


@rule(Tensor.__getitem__)
def _getitem(tape: Tape, table: Any, index: Any) -> Any:
    is_index = (
        isinstance(index, Tensor) and not index.is_floating_point() and index.dtype not in (torch.bool, torch.uint8)
    )
    return _looked_up(tape, index, table, None) if is_index else NotImplemented


def _looked_up(tape: Tape, input: Any, table: Any, padding_idx: int | None) -> Any:
    indices = tape.physical(input)
    if indices is None or not isinstance(table, Handle) or table.node.value.dim() != 2:
        return NotImplemented
    node, height = table.node, table.node.value.shape[0]
    # Those below zero count from the end.
    places = (indices % height).reshape(len(indices), -1)
    padding = None if padding_idx is None else padding_idx % height

    def pull(gradient: Tensor) -> list:
        rows = gradient.reshape(*places.shape, gradient.shape[-1])
        if padding is not None:
            rows = rows.masked_fill((places == padding)[..., None], 0)
        return [(node, Rows(places, rows, node.value.shape))]

    return tape.use(F.embedding(places, node.live).view(*indices.shape, node.value.shape[1]), indices, node, pull)


@rule(F.embedding_bag)
def _embedding_bag(
    tape: Tape,
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    simple = max_norm is None and not scale_grad_by_freq and mode != "max" and padding_idx is None
    vectors = _looked_up(tape, input, weight, None) if simple else NotImplemented
    if vectors is NotImplemented:
        given = input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode
        rest = per_sample_weights, include_last_offset, padding_idx
        return F.embedding_bag(*given, False, *rest) if sparse else NotImplemented
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.unsqueeze(-1)
    if offsets is None:
        return vectors.sum(1) if mode == "sum" else vectors.mean(1)
    starts = offsets[:-1] if include_last_offset else offsets
    positions = torch.arange(vectors.shape[0], device=vectors.device)
    ends = torch.cat([starts[1:], torch.full_like(starts[:1], vectors.shape[0])])
    member = ((positions >= starts[:, None]) & (positions < ends[:, None])).to(vectors.dtype)
    bags = member @ vectors
    return bags if mode == "sum" else bags / member.sum(1, keepdim=True).clamp_min(1)


PHYSICAL_RULES.update({F.embedding: _embedding, F.embedding_bag: _embedding_bag})
