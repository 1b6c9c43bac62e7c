"""All parts of one parameter as one: uses are added before a norm is taken, so that shared weights are right."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from purenn.transforms.per_sample._outer import Outer
from purenn.transforms.per_sample._part import Budget, Materialised, Part, Small, together
from purenn.transforms.per_sample._pulled import Pulled
from purenn.transforms.per_sample._rows import Rows, TiedRows


def joined(parts: Sequence[Part]) -> Part:
    """One part that is the sum of some."""
    merged = _merged(parts) if len(parts) > 1 else parts
    if len(merged) == 1:
        return merged[0]
    tied = TiedRows.of(merged)
    if tied is not None:
        return tied
    return Disjoint(merged) if _are_disjoint(merged) else Sum(merged)


class Sum(Part):
    """The sum of several parts of different forms."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__(parts[0].examples, parts[0].shape, parts[0].item)
        self.parts = parts

    def made(self, start: int, stop: int) -> Tensor:
        """The sum of the gradients."""
        total = None
        for part in self.parts:
            made = part.piece(start, stop)
            total = made if total is None else total + made
        assert total is not None
        return total

    def summed(self, weights: Tensor) -> Tensor:
        """Part by part."""
        return torch.stack([part.weighted_sum(weights) for part in self.parts]).sum(0)


class Disjoint(Sum):
    """The sum of parts that are gradients of different elements of the parameter, such as slices of it."""

    def plan(self, budget: Budget) -> tuple[str, bool]:
        """Those of the parts."""
        plans = [part.plan(budget) for part in self.parts]
        return " + ".join(dict.fromkeys(form for form, _ in plans)), all(keeps for _, keeps in plans)

    def norms(self, budget: Budget) -> Tensor:
        """From those of the parts."""
        return together([part.norms(budget) for part in self.parts])


def _merged(parts: Iterable[Part]) -> list[Part]:
    groups: dict[Any, list[Part]] = {}
    for part in parts:
        groups.setdefault(_kind(part), []).append(part)
    return [_MERGE[kind[0]](group) if len(group) > 1 else group[0] for kind, group in groups.items()]


def _kind(part: Part) -> tuple:
    if isinstance(part, Outer):
        return "outer", part.split, part.order, part.lead[1], part.sides[0].shape[-1]
    if isinstance(part, Rows):
        return ("rows",)
    if isinstance(part, Materialised):
        return ("materialised",)
    if isinstance(part, Pulled) and part.keeps_norms:
        return "view", part.place
    return "other", id(part)


def _merge_outers(parts: Sequence[Any]) -> Part:
    # A weight that is used twice is a longer sequence.
    left, right = (torch.cat([getattr(part, side) for part in parts], 2) for side in ("left", "right"))
    return Outer(left, right, left.shape[:3], parts[0].shape, parts[0].split, parts[0].order)


def _merge_materialised(parts: Sequence[Any]) -> Part:
    total: Tensor = sum((part.kept for part in parts[1:]), parts[0].kept)  # pyright: ignore[reportAssignmentType]
    return Small(total) if any(isinstance(part, Small) for part in parts) else type(parts[0])(total)


def _merge_views(parts: Sequence[Any]) -> Part:
    return parts[0].with_inner(joined([part.inner for part in parts]))


_MERGE: dict[str, Callable[[Sequence[Any]], Part]] = {
    "outer": _merge_outers,
    "rows": Rows.merged,
    "materialised": _merge_materialised,
    "view": _merge_views,
}


def _are_disjoint(parts: Sequence[Part]) -> bool:
    if not all(isinstance(part, Pulled) and part.keeps_norms for part in parts):
        return False
    extents = sorted(part.extent for part in parts if isinstance(part, Pulled))
    return all(before[1] < after[0] for before, after in pairwise(extents))
