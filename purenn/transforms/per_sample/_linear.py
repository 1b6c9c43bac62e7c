"""Rules of products with a matrix."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn.transforms.per_sample._below import BelowVmap
from purenn.transforms.per_sample._handle import Handle, Node
from purenn.transforms.per_sample._outer import Outer, matrix_part
from purenn.transforms.per_sample._part import Later, Part, Small, cast, over_positions
from purenn.transforms.per_sample._tape import Pull, Tape, rule


def matrix_use(node: Node, left: Tensor, right: Tensor) -> tuple[Node, Outer]:
    """The part of a matrix ``[p, d]`` from the gradients ``[examples, *, p]`` and inputs ``[examples, *, d]``.

    Both may have the examples and their positions as one axis. The transpose of a parameter is the parameter with both
    sides exchanged.
    """
    dtype = node.live.dtype
    left, right = cast(left, dtype), cast(right, dtype)
    if node.is_transposed:
        assert node.base is not None
        node, left, right = node.base, right, left
    return node, matrix_part(left, right, node.live.shape, node.tape.examples)


@rule(F.linear)
def _linear(tape: Tape, input: Any, weight: Any, bias: Any = None) -> Any:
    x = tape.physical(input)
    if x is None or not isinstance(weight, Handle) or weight.node.live.dim() != 2 or x.dim() < 2:
        return NotImplemented
    if bias is not None and not isinstance(bias, Handle):
        return _linear(tape, input, weight) + bias
    of_weight, of_bias, used = weight.node, None if bias is None else bias.node, x.detach()

    def pull(gradient: Tensor) -> list[tuple[Node, Part]]:
        owner, outer = matrix_use(of_weight, gradient, used)
        if of_bias is None:
            return [(owner, outer)]
        return [(owner, outer), (of_bias, _bias_part(of_bias.live, gradient, outer, owner is of_weight))]

    return _affine(tape, x, of_weight.live, None if of_bias is None else of_bias.live, used, of_weight, pull)


def _bias_part(bias: Tensor, gradient: Tensor, of_weight: Outer, is_left: bool) -> Part:
    examples, positions = of_weight.examples, of_weight.lead[2]
    if positions != 1:
        by_example = gradient.reshape(examples, positions, gradient.shape[-1])
        return Later(lambda: over_positions(by_example), bias, examples)
    # At a single position it is the side of the matrix's gradient that has its norms taken anyway.
    return Small(gradient, (lambda: of_weight.left_norms) if is_left else None)


def _affine(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, used: Tensor, node: Node, pull: Pull) -> Tensor:
    # Under vmap it would be a product and a sum, each with a pass of its own.
    with BelowVmap():
        y = F.linear(x.flatten(0, -2), weight, bias)
        seen = y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])
    return tape.use(y, used, node, pull, seen)


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.mv, Tensor.mv)
def _matmul(tape: Tape, one: Any, other: Any) -> Any:
    if isinstance(one, Handle) and isinstance(other, Handle):
        return NotImplemented
    if isinstance(other, Handle):
        return _times_matrix(tape, one, other)
    return _matrix_times(tape, one, other)


@rule(Tensor.__rmatmul__)
def _rmatmul(tape: Tape, one: Any, other: Any) -> Any:
    return _matmul(tape, other, one)


@rule(torch.addmm, Tensor.addmm)
def _addmm(tape: Tape, summand: Any, one: Any, other: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if not isinstance(other, Handle) or isinstance(one, Handle) or beta != 1 or alpha != 1:
        return NotImplemented
    product = _times_matrix(tape, one, other)
    return product if product is NotImplemented else product + summand


def _times_matrix(tape: Tape, one: Any, matrix: Handle) -> Any:
    x = tape.physical(one)
    if x is None or matrix.node.live.dim() != 2 or x.dim() < 2:
        return NotImplemented
    node, used = matrix.node, x.detach()
    return _affine(tape, x, node.live.t(), None, used, node, lambda gradient: [matrix_use(node, used, gradient)])


def _matrix_times(tape: Tape, matrix: Handle, other: Any) -> Any:
    x = tape.physical(other)
    if x is None or matrix.node.live.dim() != 2 or x.dim() < 2:
        return NotImplemented
    node, is_vector = matrix.node, x.dim() == 2
    used = x.detach() if is_vector else x.detach().mT

    def pull(gradient: Tensor) -> list[tuple[Node, Part]]:
        return [matrix_use(node, gradient if is_vector else gradient.mT, used)]

    if is_vector:
        return _affine(tape, x, node.live, None, used, node, pull)
    return tape.use(torch.matmul(node.live, x), used, node, pull)
