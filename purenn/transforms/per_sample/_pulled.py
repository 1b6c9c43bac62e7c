"""The gradient of a parameter through what is computed from it: a view, a normalised weight, a sum of two factors."""

import torch
from torch import Tensor

from purenn.transforms.per_sample._handle import Node
from purenn.transforms.per_sample._part import Budget, Part, Products


class Pulled(Part):
    """The part of a parameter, from that of a node that is computed from it.

    Attributes:
        inner: the part of the node.
        keeps_norms: whether the node is a view, so that both have the same norms.
    """

    def __init__(self, inner: Part, node: Node, parameter: Node) -> None:
        super().__init__(inner.examples, parameter.value.shape, inner.item)
        self.inner, self._node, self._parameter = inner, node, parameter
        self.keeps_norms = node.base is parameter

    def with_inner(self, inner: Part) -> "Pulled":
        """The same with another part of the node."""
        return Pulled(inner, self._node, self._parameter)

    @property
    def place(self) -> tuple:
        """Which elements of the parameter a view consists of."""
        view = self._node.value
        return view.storage_offset(), tuple(view.shape), view.stride()

    @property
    def extent(self) -> tuple[int, int]:
        """The first and the last position in memory of a view."""
        start, shape, strides = self.place
        return start, start + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))

    def made(self, start: int, stop: int) -> Tensor:
        """By the derivative of the computation, for all examples at once if torch can do that."""
        gradients = self.inner.piece(start, stop)
        try:
            return self._pull(gradients, is_batched=True)
        except RuntimeError:
            return torch.stack([self._pull(gradient, is_batched=False) for gradient in gradients])

    def summed(self, weights: Tensor) -> Tensor:
        """The derivative of the computation, once."""
        return self._pull(self.inner.weighted_sum(weights), is_batched=False)

    def plan(self, budget: Budget) -> tuple[str, bool]:
        """That of the view."""
        return self.inner.plan(budget) if self.keeps_norms else super().plan(budget)

    def norms(self, budget: Budget) -> Tensor:
        """Those of the view."""
        return self.inner.norms(budget) if self.keeps_norms else super().norms(budget)

    def gram(self, other: Part, products: Products) -> Tensor:
        """That of the view, if it is the same one."""
        if self.keeps_norms and isinstance(other, Pulled) and other.keeps_norms and other.place == self.place:
            return self.inner.gram(other.inner, products)
        return super().gram(other, products)

    def _pull(self, gradient: Tensor, *, is_batched: bool) -> Tensor:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(
                self._node.source,
                self._parameter.source,
                gradient.to(self._node.value.dtype),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=is_batched,
            )
        if found is not None:
            return found
        # A computation whose derivative is zero everywhere, as the number of weights that are not.
        leading = gradient.shape[:1] if is_batched else ()
        return self._parameter.value.new_zeros(*leading, *self.shape)
