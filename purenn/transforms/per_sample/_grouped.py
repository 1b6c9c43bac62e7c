"""Several rows of a batch as one unit: the gradient of a user is the sum of those of the user's rows."""

import torch
from torch import Tensor

from purenn.transforms.per_sample._outer import Outer
from purenn.transforms.per_sample._part import Part, Products, root


class Grouped(Part):
    """The part of units, from that of rows.

    Attributes:
        inner: the part of the rows.
        units: to which unit each row belongs, ``[rows]``.
    """

    def __init__(self, inner: Part, units: Tensor, count: int) -> None:
        super().__init__(count, inner.shape, inner.item)
        self.inner, self.units = inner, units
        self.ghost = isinstance(inner, Outer) and inner.lead[2] == 1

    def made(self, start: int, stop: int) -> Tensor:
        """The rows' gradients, added up."""
        rows = self.inner.dense()
        whole = rows.new_zeros(self.examples, *self.shape).index_add(0, self.units, rows)
        return whole[start:stop]

    def summed(self, weights: Tensor) -> Tensor:
        """Every row with the weight of its unit."""
        return self.inner.weighted_sum(weights[self.units])

    def ghost_norms(self) -> Tensor:
        """From the inner products of the unit's rows."""
        same = self.units[:, None] == self.units[None, :]
        products = self.inner.gram(self.inner, Products()).masked_fill(~same, 0).sum(1)
        return root(products.new_zeros(self.examples).index_add(0, self.units, products))


def sums_of(losses: Tensor, units: Tensor, count: int) -> Tensor:
    """The losses of units, from those of rows."""
    return torch.zeros(count, dtype=losses.dtype, device=losses.device).index_add(0, units, losses)
