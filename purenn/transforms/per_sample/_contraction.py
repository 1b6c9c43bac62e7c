"""The rule of an einsum with a parameter, which covers products by blocks, by heads and by capsules."""

from typing import Any

import torch
from torch import Tensor

from purenn import ops
from purenn.transforms.per_sample._handle import Handle
from purenn.transforms.per_sample._outer import Outer
from purenn.transforms.per_sample._tape import Tape, rule

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@rule(torch.einsum, ops.einsum2)
def _einsum(tape: Tape, equation: Any, *operands: Any) -> Any:
    if not isinstance(equation, str) or len(operands) != 2 or equation.count(",") != 1 or "->" not in equation:
        return NotImplemented
    inputs, out = equation.replace(" ", "").split("->")
    terms = dict(zip(operands, inputs.split(","), strict=True)) if operands[0] is not operands[1] else {}
    parameter = next((x for x in terms if isinstance(x, Handle)), None)
    data = next((x for x in terms if not isinstance(x, Handle)), None)
    x = tape.physical(data)
    if parameter is None or x is None:
        return NotImplemented
    indices = _without_ellipsis(terms[parameter], terms[data], out, x.dim() - 1)
    return NotImplemented if indices is None else _contract(tape, parameter, x, *indices)


def _without_ellipsis(of_parameter: str, of_data: str, out: str, dims: int) -> tuple[str, str, str] | None:
    # The indices of both operands and of the result; None if an index is repeated or summed on its own.
    if "..." in of_parameter:
        return None
    if "..." in of_data:
        free = [letter for letter in _LETTERS if letter not in of_parameter + of_data + out]
        new = "".join(free[: dims - len(of_data) + 3])
        of_data, out = of_data.replace("...", new), out.replace("...", new)
    terms = of_parameter, of_data, out
    if any(len(set(term)) != len(term) or "." in term for term in terms) or len(of_data) != dims:
        return None
    lonely = set(of_parameter) - set(of_data + out) | set(of_data) - set(of_parameter + out)
    return None if lonely else terms


def _contract(tape: Tape, parameter: Handle, x: Tensor, own: str, data: str, out: str) -> Tensor:
    new = next(letter for letter in _LETTERS if letter not in own + data + out)
    node = parameter.node
    blocks = "".join(i for i in own if i in data and i in out)
    rows = "".join(i for i in own if i not in data)
    columns = "".join(i for i in own if i not in out)
    length = "".join(i for i in data if i not in own)
    sizes = dict(zip(own, node.value.shape, strict=True))
    inner = blocks + rows + columns
    split = [sizes[i] for i in inner]

    def pull(gradient: Tensor) -> list:
        left = _arranged(gradient, out, blocks, length, rows)
        right = _arranged(x.detach(), data, blocks, length, columns)
        return [(node, Outer(left, right, left.shape[:3], node.value.shape, split, [inner.index(i) for i in own]))]

    y = torch.einsum(f"{new}{data},{own}->{new}{out}", x, node.beside(x))
    return tape.use(y, x, node, pull)


def _arranged(x: Tensor, indices: str, *groups: str) -> Tensor:
    # The axes of each group as one: [examples, blocks, length, rows or columns].
    order = [indices.index(i) + 1 for group in groups for i in group]
    sizes = dict(zip(indices, x.shape[1:], strict=True))
    merged = [torch.Size([sizes[i] for i in group]).numel() for group in groups]
    return x.permute(0, *order).reshape(len(x), *merged)
