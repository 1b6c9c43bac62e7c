"""A two-operand einsum that stays one under every transformation.

`torch.einsum` under vmap becomes a batched matrix product, whose batching rule copies an unbatched operand once for
every example: eight times the memory in capsule routing. Here the rule adds an index to the batched operands only, and
the derivatives are again calls of `einsum2`, so no transformation of any order ever expands an operand.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from purenn.errors import ArgumentError, ShapeError

_LETTERS = "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA"


def einsum2(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """The sum of products ``"ij,jk->ik"`` of two tensors, differentiable any number of times.

    Args:
        equation: the indices of `a`, of `b` and of the result, each index at most once in each of the three.
        a: the first operand.
        b: the second operand, of the same dtype.

    Raises:
        ArgumentError: the equation is no such equation.
        ShapeError: an operand has not as many axes as indices, or an index has two lengths.

    Example:
        >>> import torch
        >>> from purenn.ops import einsum2
        >>> w, x = torch.ones(4, 3), torch.ones(5, 3)
        >>> torch.func.vmap(lambda x: einsum2("oi,i->o", w, x))(x).shape
        torch.Size([5, 4])
    """
    if has_torch_function_variadic(a, b):
        return handle_torch_function(einsum2, (a, b), equation, a, b)
    first, second, out = _parts(equation)
    lengths: dict[str, int] = {}
    for name, indices, operand in (("first", first, a), ("second", second, b)):
        if operand.dim() != len(indices):
            raise ShapeError(
                f"einsum2: the {name} operand has shape {tuple(operand.shape)}, but '{equation}' gives it "
                f"{len(indices)} axes."
            )
        for index, length in zip(indices, operand.shape, strict=True):
            if lengths.setdefault(index, length) != length:
                raise ShapeError(
                    f"einsum2: index '{index}' of '{equation}' has length {lengths[index]} in the first and {length} "
                    f"in the second operand."
                )
    return _einsum2(first, second, out, a, b)


def _parts(equation: str) -> tuple[str, str, str]:
    operands, arrow, out = equation.replace(" ", "").partition("->")
    first, comma, second = operands.partition(",")
    parts = (first, second, out)
    good = arrow and comma and all(part.isalpha() or not part for part in parts)
    if not good or any(len(set(part)) != len(part) for part in parts) or not set(out) <= set(first) | set(second):
        raise ArgumentError(
            f"einsum2: expected an equation such as 'ij,jk->ik' with two operands, the result written out and no index "
            f"repeated within a term, got {equation!r}."
        )
    return parts


class _Einsum2(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, first: str, second: str, out: str) -> Tensor:
        return torch.einsum(f"{first},{second}->{out}", a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        a, b, *ctx.terms = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b = ctx.saved_tensors
        first, second, out = ctx.terms
        return (
            _pull(gradient, out, b, second, a, first) if ctx.needs_input_grad[0] else None,
            _pull(gradient, out, a, first, b, second) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        a, b = ctx.saved_tensors
        first, second, out = ctx.terms
        moved_a, moved_b = tangents[:2]
        parts = []
        if moved_a is not None:
            parts.append(_einsum2(first, second, out, moved_a, b))
        if moved_b is not None:
            parts.append(_einsum2(first, second, out, a, moved_b))
        return sum(parts[1:], parts[0]) if parts else None

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple, a: Tensor, b: Tensor, first: str, second: str, out: str
    ) -> tuple[Tensor, int]:
        new = next(letter for letter in _LETTERS if letter not in first + second)
        if in_dims[0] is not None:
            a, first = a.movedim(in_dims[0], 0), new + first
        if in_dims[1] is not None:
            b, second = b.movedim(in_dims[1], 0), new + second
        return _einsum2(first, second, new + out, a, b), 0


def _einsum2(first: str, second: str, out: str, a: Tensor, b: Tensor) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        # What reads Python cannot read a Function with a forward mode; unbatched, torch's own costs the same.
        return torch.einsum(f"{first},{second}->{out}", a, b)
    return _Einsum2.apply(a, b, first, second, out)


def _pull(gradient: Tensor, out: str, other: Tensor, other_indices: str, like: Tensor, indices: str) -> Tensor:
    # The gradient of the operand `like`. An index that it alone has was summed over, so its gradient is constant there.
    kept = "".join(index for index in indices if index in out or index in other_indices)
    result = _einsum2(out, other_indices, kept, gradient, other)
    if kept == indices:
        return result
    for position, index in enumerate(indices):
        if index not in kept:
            result = result.unsqueeze(position)
    return result.expand(like.shape)
