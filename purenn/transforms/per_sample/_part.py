"""The parts of a per-example gradient, each in the form that is cheapest to keep.

What a part can always do is to become the gradients themselves, ``[examples, *shape]``. Norms, weighted sums and inner
products have shorter ways in most forms.
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn._modes import is_plain

# How much is computed at a time where the gradients of all examples have no room.
_PIECE = 16 << 20
# How many rows are added at a time, and from how many numbers on that pays.
_ROWS, _MANY = 8, 1 << 19
CLOSED, MATERIALISED, COPIES = "closed form", "materialised", "copies"


class Budget:
    """How many bytes of per-example gradients may still be kept for a second use.

    Attributes:
        left: so many.
        releases: whether a part whose gradients are kept may forget what they were made of.
    """

    def __init__(self, bytes_: int) -> None:
        self.left, self.releases = bytes_, False

    def take(self, bytes_: int) -> bool:
        """Whether there is room; if so, it is taken."""
        if bytes_ > self.left:
            return False
        self.left -= bytes_
        return True


class Part:
    """A per-example gradient of a tensor.

    Attributes:
        form: how norms are found if the gradients are kept from the start.
        ghost: whether norms are found without the gradients, even if there is room for them.
        compact: whether norms can be found without the gradients, if there is none.
        examples: how many examples there are.
        shape: of the tensor.
        item: bytes of one number.
        kept: the gradients themselves, if they have been computed and there was room for them; with their elements in
            the order of `unarranged`.
    """

    form: str = MATERIALISED
    ghost: bool = False
    compact: bool = False
    kept: Tensor | None = None

    def __init__(self, examples: int, shape: torch.Size, item: int) -> None:
        self.examples, self.shape, self.item = examples, shape, item

    @property
    def bytes(self) -> int:
        """What the gradients of all examples take."""
        return self.examples * self.shape.numel() * self.item

    def made(self, start: int, stop: int) -> Tensor:
        """The gradients of the examples from `start` to `stop`, ``[stop - start, *shape]``."""
        raise AssertionError

    def summed(self, weights: Tensor) -> Tensor:
        """The weighted sum over the examples, without the gradients of each."""
        return _total((weights[start:stop, None] * rows(made)).sum(0) for start, stop, made in self._slices())

    def unarranged(self) -> Tensor:
        """The gradients of all examples with their elements in the order in which they are made fastest."""
        return self.made(0, self.examples)

    def arranged(self, gradients: Tensor) -> Tensor:
        """Such gradients as those of the parameter, ``[n, *shape]``."""
        return gradients

    def arranged_sum(self, total: Tensor) -> Tensor:
        """A sum of such gradients, in one row, as a gradient of the parameter."""
        return total.view(self.shape)

    def piece(self, start: int, stop: int) -> Tensor:
        """The gradients of the examples from `start` to `stop`, made now if they are not kept."""
        return self.made(start, stop) if self.kept is None else self.arranged(self.kept[start:stop])

    def dense(self) -> Tensor:
        """The gradients of all examples, ``[examples, *shape]``."""
        return self.piece(0, self.examples)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """The sum over the examples, each times its weight."""
        kept = self.kept
        if kept is None:
            return self.summed(weights).view(self.shape)
        return self.arranged_sum(in_dtype(kept.dtype, weights).unsqueeze(0).mm(rows(kept)))

    def plan(self, budget: Budget) -> tuple[str, bool]:
        """How norms will be found, and whether the gradients will be kept; the room for them is taken."""
        if self.kept is not None:
            return self.form, True
        if self.ghost:
            return CLOSED, False
        if budget.take(self.bytes):
            return MATERIALISED, True
        return CLOSED if self.compact else MATERIALISED, False

    def norms(self, budget: Budget) -> Tensor:
        """The norm of each example's gradient, ``[examples]``."""
        if self.kept is None:
            form, keeps = self.plan(budget)
            if form == CLOSED:
                return self.ghost_norms()
            if keeps:
                self.kept = self.unarranged()
                if budget.releases:
                    self.release()
        if self.kept is not None:
            return norms_of(self.kept)
        return torch.cat([norms_of(made) for _, _, made in self._slices()])

    def ghost_norms(self) -> Tensor:
        """The same without the gradients; for parts that can."""
        raise AssertionError

    def release(self) -> None:
        """Forget what the gradients were made of, once they are kept."""

    def second_moment(self) -> Tensor:
        """The sum over the examples of the squares of all elements."""
        return _total(squares(made).sum(0) for _, _, made in self._slices())

    def gram(self, other: "Part", products: "Products") -> Tensor:
        """The inner products with the gradients of another part, ``[examples, other's examples]``.

        Args:
            other: of the same parameter.
            products: those that other parts have needed.
        """
        return torch.cat(
            [
                torch.cat([numbers(mine) @ numbers(theirs).T for _, _, theirs in other._slices()], 1)
                for _, _, mine in self._slices()
            ]
        )

    def _slices(self) -> Iterator[tuple[int, int, Tensor]]:
        if self.kept is not None:
            yield 0, self.examples, self.dense()
            return
        step = max(1, _PIECE // max(1, self.shape.numel() * self.item))
        for start in range(0, self.examples, step):
            stop = min(start + step, self.examples)
            yield start, stop, self.made(start, stop)


class Materialised(Part):
    """The gradients themselves."""

    def __init__(self, gradients: Tensor) -> None:
        super().__init__(len(gradients), gradients.shape[1:], gradients.element_size())
        self.kept = gradients


class Copies(Materialised):
    """The gradients of a parameter of which every example had a copy."""

    form = COPIES


class Small(Materialised):
    """Gradients no larger than one row for each example, which an operation gives without a detour: of a bias."""

    form = CLOSED

    def __init__(self, gradients: Tensor, norms: Callable[[], Tensor] | None = None) -> None:
        """Take the gradients, ``[examples, *shape]``, and a shorter way to their norms if there is one."""
        super().__init__(gradients)
        self._norms = norms

    def norms(self, budget: Budget) -> Tensor:
        """By the shorter way, if there is one."""
        return super().norms(budget) if self._norms is None else self._norms()

    def gram(self, other: Part, products: "Products") -> Tensor:
        """By one product, which the part of a matrix may have needed."""
        mine, theirs = self.kept, other.kept
        if mine is None or theirs is None or not isinstance(other, Small):
            return super().gram(other, products)
        return products.between(numbers(mine), numbers(theirs))


class Later(Small):
    """The same, made when they are asked for.

    Of a layer's bias that is right after its weight, when what both are made of is still in the cache.
    """

    def __init__(self, make: Callable[[], Tensor], parameter: Tensor, examples: int) -> None:
        """Take note of how to make the gradients of a parameter."""
        Part.__init__(self, examples, parameter.shape, parameter.element_size())
        self._make: Callable[[], Tensor] | None = make
        self._dtype, self._norms = parameter.dtype, None

    @functools.cached_property
    def kept(self) -> Tensor:
        """The gradients; what they are made of is forgotten."""
        assert self._make is not None
        made, self._make = in_dtype(self._dtype, self._make()), None
        return made


class Products:
    """Inner products of rows; the last ones are remembered, for a bias that comes after its matrix."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def between(self, one: Tensor, other: Tensor) -> Tensor:
        """``[n, m]`` of ``[n, size]`` and ``[m, size]``, which nobody may write to."""
        if self._last is None or self._last[0] is not one or self._last[1] is not other:
            self._last = one, other, one @ other.T
        return self._last[2]


def rows(gradients: Tensor) -> Tensor:
    """Each example's gradient as one row."""
    return gradients if gradients.dim() == 2 else gradients.reshape(gradients.shape[0], -1)


def numbers(gradients: Tensor) -> Tensor:
    """The same in real numbers."""
    return rows(torch.view_as_real(gradients) if gradients.is_complex() else gradients)


def squares(x: Tensor) -> Tensor:
    """The squares of real numbers, and those of the sizes of complex ones."""
    return x.abs().square() if x.is_complex() else x.square()


def over_positions(x: Tensor) -> Tensor:
    """The sum of ``[examples, *positions, size]`` over the positions, ``[examples, size]``."""
    examples, positions, size = x.shape[0], x.shape[1:-1].numel(), x.shape[-1]
    if positions == 1:
        return x.reshape(examples, size)
    x = x.reshape(examples, positions, size)
    if is_plain(x):
        return _sum_of_rows(x)
    # A compiler puts sums off until all norms are taken, and holds x until then; a product of two rows stays in place.
    return torch.bmm(x.new_ones(examples, 2, positions), x)[:, 0]


def _sum_of_rows(x: Tensor) -> Tensor:
    examples, positions, size = x.shape
    if positions % _ROWS or x.device.type != "cpu" or x.numel() < _MANY or not x.is_contiguous():
        return x.sum(1)
    # A CPU fetches what lies together ahead: first the sum of few long rows, then of what is left.
    return x.view(examples, _ROWS, -1).sum(1).view(examples, -1, size).sum(1)


def norms_of(gradients: Tensor) -> Tensor:
    """The norm of each of some gradients."""
    return torch.linalg.vector_norm(rows(gradients), dim=1)


def together(norms: list[Tensor]) -> Tensor:
    """The norm of a whole, from those of its pieces."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms, 1), dim=1)


def root(squared: Tensor) -> Tensor:
    """Norms from their squares, which rounding can have made negative."""
    return squared.clamp_min(0).sqrt()


def _total(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
