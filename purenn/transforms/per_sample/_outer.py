"""The gradient of a matrix: a sum of outer products, which need not be computed for norms and weighted sums.

With the input a ``[T, d]`` of an example and the gradient b ``[T, p]`` of the output, the gradient is ``b^T a``. Its
squared norm is the inner product of ``a a^T`` and ``b b^T``, both ``[T, T]``: the *ghost norm*.

Source:
    Goodfellow: Efficient Per-Example Gradient Computations, 2015. Sequences: Li, Tramer, Liang, Hashimoto: Large
    Language Models Can Be Strong Differentially Private Learners, 2022. The choice between both ways: Bu, Mao, Xu:
    Scalable and Efficient Training of Large Convolutional Neural Networks with Differential Privacy, 2022.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn.transforms.per_sample._part import Part, Products, root

#: Multiplications and additions in the time in which one number of a gradient is written and read twice, on a CPU.
_OPERATIONS_A_NUMBER = 64
#: From so many on it pays to compute symmetric matrices over them by halves.
_MANY_POSITIONS = 64


def is_compact(length: int, rows: int, columns: int) -> bool:
    """Whether two matrices over the positions take no more memory than the gradient of one example."""
    return length == 1 or 2 * length * length <= rows * columns


def is_fast(length: int, rows: int, columns: int) -> bool:
    """Whether to make them takes no longer than to keep the gradient, from which the weighted sum is found as well."""
    return length == 1 or 2 * length * length * (rows + columns) <= _OPERATIONS_A_NUMBER * rows * columns


class Outer(Part):
    """The sum over T of outer products ``left[n, k, t] right[n, k, t]^T``, for each n of the examples.

    Attributes:
        sides: ``[*, p]`` and ``[*, d]``, whose leading axes are those of `lead`, whether as one or as several.
        lead: examples, K and T.
        order: where the K matrices ``[K, p, d]`` with their axes split go in the parameter: see `arrange`.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        lead: Sequence[int],
        shape: torch.Size,
        split: Sequence[int] = (),
        order: Sequence[int] = (),
    ) -> None:
        super().__init__(lead[0], shape, left.element_size())
        self.sides, self.lead, self.split, self.order = (left, right), tuple(lead), tuple(split), tuple(order)
        length, height, width = lead[2], left.shape[-1], right.shape[-1]
        self.compact = is_compact(length, height, width)
        self.ghost = self.compact and is_fast(length, height, width)
        self._left_norms: Tensor | None = None
        # On a CPU a wide product is faster than a tall one.
        self._is_turned = length > 1 and height > width and left.device.type == "cpu"

    @property
    def left(self) -> Tensor:
        """The left side, ``[examples, K, T, p]``."""
        return self.sides[0].reshape(*self.lead, self.sides[0].shape[-1])

    @property
    def right(self) -> Tensor:
        """The right side, ``[examples, K, T, d]``."""
        return self.sides[1].reshape(*self.lead, self.sides[1].shape[-1])

    @property
    def left_norms(self) -> Tensor:
        """The norm of each row of the left side, ``[examples * K * T]``."""
        norms = self._left_norms
        if norms is None:
            norms = self._left_norms = torch.linalg.vector_norm(_flat(self.sides[0]), dim=1)
        return norms

    def arrange(self, matrices: Tensor) -> Tensor:
        """``[n, K, p, d]`` as gradients of the parameter, ``[n, *shape]``."""
        n = len(matrices)
        if not self.order:
            return matrices.reshape(n, *self.shape)
        return matrices.reshape(n, *self.split).permute(0, *[axis + 1 for axis in self.order]).reshape(n, *self.shape)

    def made(self, start: int, stop: int) -> Tensor:
        """By a product for each example."""
        return self.arrange(_products(self.left[start:stop], self.right[start:stop]))

    def unarranged(self) -> Tensor:
        """The matrices, or their transposes, as they are: ``[examples, K, p, d]`` or ``[examples, K, d, p]``."""
        return _products(self.right, self.left) if self._is_turned else _products(self.left, self.right)

    def arranged(self, gradients: Tensor) -> Tensor:
        """Those matrices in the parameter."""
        return self.arrange(gradients.mT if self._is_turned else gradients)

    def arranged_sum(self, total: Tensor) -> Tensor:
        """In the layout of the parameter."""
        assert self.kept is not None
        return self.arranged(total.view(1, *self.kept.shape[1:]))[0].contiguous()

    def piece(self, start: int, stop: int) -> Tensor:
        """In the layout of the parameter, too."""
        return super().piece(start, stop).contiguous()

    def summed(self, weights: Tensor) -> Tensor:
        """By one product for all examples, as in the gradient of a batch."""
        left, right = self.sides
        factors = in_dtype(left.dtype, weights)
        # They go to the smaller side.
        if left.shape[-1] <= right.shape[-1]:
            left = self._scaled(left, factors)
        else:
            right = self._scaled(right, factors)
        if self.lead[1] == 1:
            matrix = _flat(left).t().mm(_flat(right))
            return self.arrange(matrix[None, None])[0] if self.order else matrix
        left, right = (x.view(*self.lead, x.shape[-1]).transpose(0, 1).flatten(1, 2) for x in (left, right))
        return self.arrange(torch.bmm(left.mT, right)[None])[0]

    def _scaled(self, side: Tensor, factors: Tensor) -> Tensor:
        if side.dim() == 2 and side.shape[0] == self.examples:
            return side * factors.unsqueeze(1)
        return side.reshape(self.examples, self.lead[1] * self.lead[2], side.shape[-1]) * factors[:, None, None]

    def release(self) -> None:
        """Forget both sides."""
        self.sides = self.sides[0].new_empty(0), self.sides[0].new_empty(0)

    def ghost_norms(self) -> Tensor:
        """By the two matrices over the positions."""
        if self.lead[2] == 1:
            norms = self.left_norms * torch.linalg.vector_norm(_flat(self.sides[1]), dim=1)
            return norms if self.lead[1] == 1 else torch.linalg.vector_norm(norms.view(*self.lead[:2]), dim=1)
        pairs = zip(_between_positions(self.left), _between_positions(self.right), strict=True)
        total, *twice = [one.mul_(other).view(self.examples, -1).sum(1) for one, other in pairs]
        return root(total + 2 * twice[0] if twice else total)

    def second_moment(self) -> Tensor:
        """The squares of a single outer product are the outer product of the squares."""
        if self.kept is not None or self.lead[2] != 1:
            return super().second_moment()
        left, right = self.sides
        ones = left.new_ones(self.examples)
        return Outer(left.square(), right.square(), self.lead, self.shape, self.split, self.order).summed(ones)

    def gram(self, other: Part, products: Products) -> Tensor:
        """As norms, between different examples."""
        if not isinstance(other, Outer) or self._is_made(other) or not self._is_gram_ghost(other):
            return super().gram(other, products)
        if self.lead[1:] == other.lead[1:] == (1, 1):
            rows, their_rows = (_flat(part.sides[1]) for part in (self, other))
            return (rows @ their_rows.T).mul_(products.between(_flat(self.sides[0]), _flat(other.sides[0])))
        left, right, their_left, their_right = self.left, self.right, other.left, other.right
        total = None
        for k in range(self.lead[1]):
            term = _between(left[:, k], their_left[:, k]).mul_(_between(right[:, k], their_right[:, k]))
            term = term.view(self.examples, self.lead[2], other.examples, other.lead[2]).sum((1, 3))
            total = term if total is None else total + term
        assert total is not None
        return total

    def _is_made(self, other: Part) -> bool:
        return self.kept is not None or other.kept is not None

    def _is_gram_ghost(self, other: "Outer") -> bool:
        _, groups, length = self.lead
        rows, columns, theirs = self.sides[0].shape[-1], self.sides[1].shape[-1], other.lead[2]
        by_matrices = groups * self.examples * length * other.examples * theirs * (rows + columns)
        count = rows * columns * groups
        return by_matrices <= count * (
            self.examples * length + other.examples * theirs + self.examples * other.examples
        )


def _products(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[2] == 1:
        return left.mT * right
    return torch.bmm(left.flatten(0, 1).mT, right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _between_positions(side: Tensor) -> list[Tensor]:
    """The inner products of each example's rows: all, or those within each half and those between them, to count twice.

    A CPU is busy with the products; a quarter of them is saved.
    """
    x, length = side.flatten(0, 1), side.shape[2]
    if length < _MANY_POSITIONS or length % 2 or x.device.type != "cpu":
        return [torch.bmm(x, x.mT)]
    halves, (first, second) = x.reshape(-1, length // 2, x.shape[2]), x.chunk(2, 1)
    return [torch.bmm(halves, halves.mT), torch.bmm(first, second.mT)]


def _flat(side: Tensor) -> Tensor:
    return side if side.dim() == 2 else side.flatten(0, -2)


def _between(one: Tensor, other: Tensor) -> Tensor:
    return one.flatten(0, 1) @ other.flatten(0, 1).T
