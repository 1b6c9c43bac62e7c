"""Rules of products with a matrix."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn.transforms.per_sample._below import BelowVmap
from purenn.transforms.per_sample._handle import Handle, Node
from purenn.transforms.per_sample._outer import Outer
from purenn.transforms.per_sample._part import Later, Part, Small, over_positions
from purenn.transforms.per_sample._tape import PHYSICAL_RULES, Tape, rule

#: What a product contributes, from the gradients of its output and its input.
Parts = Callable[[Tensor, Tensor], list[tuple[Node, Part]]]


def matrix_use(node: Node, left: Tensor, right: Tensor) -> tuple[Node, Outer]:
    """The part of a matrix ``[p, d]`` from the gradients ``[examples, *, p]`` and inputs ``[examples, *, d]``.

    Both may have the examples and their positions as one axis. The transpose of a parameter is the parameter with both
    sides exchanged.
    """
    dtype = node.value.dtype
    left, right = in_dtype(dtype, left), in_dtype(dtype, right)
    if node.is_transposed:
        assert node.base is not None
        node, left, right = node.base, right, left
    examples = node.tape.examples
    length = left.shape[:-1].numel() // examples
    left, right = (x if x.dim() == 2 else x.reshape(examples, length, x.shape[-1]) for x in (left, right))
    return node, Outer(left, right, (examples, 1, length), node.value.shape)


@rule(F.linear)
def _linear(tape: Tape, input: Any, weight: Any, bias: Any = None) -> Any:
    x = tape.physical(input)
    if x is None or not isinstance(weight, Handle) or weight.node.value.dim() != 2 or x.dim() < 2:
        return NotImplemented
    if bias is not None and not isinstance(bias, Handle):
        return _linear(tape, input, weight) + bias
    of_weight, of_bias = weight.node, None if bias is None else bias.node

    def parts(gradient: Tensor, used: Tensor) -> list[tuple[Node, Part]]:
        owner, outer = matrix_use(of_weight, gradient, used)
        if of_bias is None:
            return [(owner, outer)]
        return [(owner, outer), (of_bias, _bias_part(of_bias.value, gradient, outer, owner is of_weight))]

    return _affine(tape, x, of_weight, of_weight.beside(x), None if of_bias is None else of_bias.value, parts)


def _bias_part(bias: Tensor, gradient: Tensor, of_weight: Outer, is_left: bool) -> Part:
    examples, positions = of_weight.examples, of_weight.lead[2]
    if positions != 1:
        by_example = gradient.reshape(examples, positions, gradient.shape[-1])
        return Later(lambda: over_positions(by_example), bias, examples)
    # At a single position it is the side of the matrix's gradient that has its norms taken anyway.
    return Small(gradient, (lambda: of_weight.left_norms) if is_left else None)


def _affine(tape: Tape, x: Tensor, node: Node, weight: Tensor, bias: Tensor | None, parts: Parts) -> Tensor:
    # Under vmap it would be a product and a sum, each with a pass of its own.
    with BelowVmap():
        flat = x.flatten(0, -2)
        y = F.linear(flat, weight, bias)
        seen = y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])
    return tape.use(y, flat, node, lambda gradient: parts(gradient, flat.detach()), seen)


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.mv, Tensor.mv)
def _matmul(tape: Tape, input: Any, other: Any) -> Any:
    if isinstance(input, Handle) and isinstance(other, Handle):
        return NotImplemented
    if isinstance(other, Handle):
        return _times_matrix(tape, input, other)
    return _matrix_times(tape, input, other)


@rule(Tensor.__rmatmul__)
def _rmatmul(tape: Tape, input: Any, other: Any) -> Any:
    return _matmul(tape, other, input)


@rule(torch.addmm, Tensor.addmm)
def _addmm(tape: Tape, input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if not isinstance(mat2, Handle) or isinstance(mat1, Handle) or beta != 1 or alpha != 1:
        return NotImplemented
    product = _times_matrix(tape, mat1, mat2)
    return product if product is NotImplemented else product + input


def _times_matrix(tape: Tape, one: Any, matrix: Handle) -> Any:
    x = tape.physical(one)
    if x is None or matrix.node.value.dim() != 2 or x.dim() < 2:
        return NotImplemented
    node = matrix.node
    return _affine(tape, x, node, node.beside(x).t(), None, lambda gradient, used: [matrix_use(node, used, gradient)])


def _matrix_times(tape: Tape, matrix: Handle, other: Any) -> Any:
    x = tape.physical(other)
    node = matrix.node
    if x is None or node.value.dim() != 2 or x.dim() < 2:
        return NotImplemented
    if x.dim() == 2:
        return _affine(tape, x, node, node.beside(x), None, lambda gradient, used: [matrix_use(node, gradient, used)])
    y = torch.matmul(node.beside(x), x)
    return tape.use(y, x, node, lambda gradient: [matrix_use(node, gradient.mT, x.detach().mT)])


def _product(tape: Tape, input: Any, other: Any) -> Any:
    left, right = tape.physical(input), tape.physical(other)
    if left is None or right is None or left.dim() != right.dim() or left.dim() < 3:
        return NotImplemented
    # Under vmap it would be arranged twice, for the example and for all of them.
    with BelowVmap():
        return tape.batched(torch.matmul(left, right))


PHYSICAL_RULES.update(dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _product))
