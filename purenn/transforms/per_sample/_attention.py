"""The rule of attention: all examples at once by the fused kernels, which have no batching rule on the CPU."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from purenn import ops
from purenn.transforms.per_sample._below import BelowVmap
from purenn.transforms.per_sample._handle import handles_in
from purenn.transforms.per_sample._tape import PHYSICAL_RULES, Tape


def _attention(
    tape: Tape,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    given = None if dropout_p else _physical(tape, query, key, value, attn_mask)
    if given is None:
        return NotImplemented
    with BelowVmap():
        out = F.scaled_dot_product_attention(*given, dropout_p=0.0, is_causal=is_causal, **options)
    return tape.batched(out)


def _own_attention(
    tape: Tape,
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    dropout: float = 0.0,
    key: Any = None,
    **options: Any,
) -> Any:
    given = None if dropout and key is not None else _physical(tape, q, k, v, mask)
    if given is None:
        return NotImplemented
    *operands, wide_mask = given
    with BelowVmap():
        out = ops.scaled_dot_product_attention(*operands, mask=wide_mask, **options)
    return tape.batched(out)


def _physical(tape: Tape, *operands: Any) -> list[Any] | None:
    # Queries, keys, values and mask with the examples in front; None if the ordinary way must do.
    if next(handles_in(operands), None) is not None:
        return None
    physical = [tape.physical(x) for x in operands]
    for x, own in zip(operands, physical, strict=True):
        if own is None and isinstance(x, Tensor) and tape.differs(x):
            return None
    if all(own is None for own in physical[:3]):
        return None
    dims = 1 + max(x.dim() for x in operands[:3])
    return [_in_front(tape, x, own, dims) for x, own in zip(operands, physical, strict=True)]


def _in_front(tape: Tape, x: Tensor | None, own: Tensor | None, dims: int) -> Tensor | None:
    if own is None:
        # What is the same for all examples broadcasts, but for the kernels' sake the operands have equal dimensions.
        return x if x is None or x.dim() < dims - 1 else x.expand(tape.examples, *x.shape)
    return own.reshape(len(own), *[1] * (dims - own.dim()), *own.shape[1:])


PHYSICAL_RULES[F.scaled_dot_product_attention] = _attention
PHYSICAL_RULES[ops.scaled_dot_product_attention] = _own_attention
