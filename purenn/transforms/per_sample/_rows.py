"""The gradient of a table in which vectors are looked up: one row for every index that occurs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purenn.transforms.per_sample._outer import Outer
from purenn.transforms.per_sample._part import Part, root


class Rows(Part):
    """For every example T rows, each to be added at its index.

    Attributes:
        indices: ``[examples, T]``.
        rows: ``[examples, T, size]``.
    """

    ghost = True

    def __init__(self, indices: Tensor, rows: Tensor, shape: torch.Size) -> None:
        super().__init__(len(rows), shape, rows.element_size())
        self.indices, self.rows = indices, rows

    @staticmethod
    def merged(parts: Sequence[Any]) -> "Rows":
        """The rows of several look-ups in one table."""
        indices, rows = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("indices", "rows"))
        return Rows(indices, rows, parts[0].shape)

    def made(self, start: int, stop: int) -> Tensor:
        """The rows at their places, zeros elsewhere."""
        count, (height, size) = stop - start, self.shape
        own = torch.arange(count, device=self.rows.device)[:, None] * height + self.indices[start:stop]
        table = self.rows.new_zeros(count * height, size)
        return table.index_add_(0, own.flatten(), self.rows[start:stop].flatten(0, 1)).view(count, height, size)

    def summed(self, weights: Tensor) -> Tensor:
        """All rows in one table."""
        rows = self.rows * weights.to(self.rows.dtype)[:, None, None]
        return self.rows.new_zeros(self.shape).index_add_(0, self.indices.flatten(), rows.flatten(0, 1))

    def ghost_norms(self) -> Tensor:
        """From the sum of ``row_s . row_t`` over all pairs with equal indices."""
        return root(self.inner_products(self).sum((1, 2)))

    def inner_products(self, other: "Rows") -> Tensor:
        """``[examples, T, other's T]``, zero where the indices differ."""
        differ = self.indices[:, :, None] != other.indices[:, None, :]
        return torch.bmm(self.rows, other.rows.mT).masked_fill_(differ, 0)


class TiedRows(Part):
    """A table that is also a matrix of a product, as where the embedding is the output's weight."""

    ghost = True

    def __init__(self, rows: Rows, outer: Outer) -> None:
        super().__init__(rows.examples, rows.shape, rows.item)
        self.rows, self.outer = rows, outer

    @staticmethod
    def of(parts: Sequence[Part]) -> "TiedRows | None":
        """The two parts of a tied table, if they are such."""
        if len(parts) != 2:
            return None
        rows, outer = sorted(parts, key=lambda part: isinstance(part, Outer))
        if isinstance(rows, Rows) and isinstance(outer, Outer) and not outer.order and outer.compact:
            return TiedRows(rows, outer)
        return None

    def made(self, start: int, stop: int) -> Tensor:
        """The sum of both."""
        return self.rows.made(start, stop) + self.outer.made(start, stop)

    def summed(self, weights: Tensor) -> Tensor:
        """The sum of both."""
        return self.rows.summed(weights) + self.outer.summed(weights)

    def ghost_norms(self) -> Tensor:
        """Those of both, and twice their inner product, in which the table's rows pick from the product's left side."""
        left, right = self.outer.left[:, 0], self.outer.right[:, 0]
        indices = self.rows.indices[:, None].expand(-1, left.shape[1], -1)
        cross = torch.gather(left, 2, indices) * torch.bmm(right, self.rows.rows.mT)
        return root(self.rows.ghost_norms().square() + self.outer.ghost_norms().square() + 2 * cross.sum((1, 2)))
