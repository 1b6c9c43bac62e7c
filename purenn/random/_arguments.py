"""Checks of the arguments that all of the package takes."""

from collections.abc import Sequence
from operator import index
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purenn.errors import ArgumentError, DeviceError
from purenn.random._philox import WORD_MASK

Shape: TypeAlias = int | Sequence[int]

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_key(key: Tensor) -> None:
    """Raise an `ArgumentError` for what is not one key."""
    if not isinstance(key, Tensor):
        raise ArgumentError(
            f"key must be a random key, a tensor made by purenn.random.key(seed), not {type(key).__name__} {key!r}"
        )
    if key.dtype != torch.int64:
        raise ArgumentError(
            f"key must have dtype torch.int64, not {key.dtype}; make it with purenn.random.key(seed) "
            "and leave it out of dtype casts"
        )
    if key.shape == (2,):
        return
    if key.dim() > 1 and key.shape[-1] == 2:
        raise ArgumentError(
            f"key must be one key of shape [2], not a batch of keys of shape {list(key.shape)}; "
            "write purenn.vmap(draw)(keys) to draw with each of them"
        )
    raise ArgumentError(
        f"key must have shape [2], not {list(key.shape)}; make it with purenn.random.key(seed) or purenn.random.split"
    )


def check_shape(shape: Shape) -> tuple[int, ...]:
    """The shape as a tuple; an int is a shape of one dimension."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not all(is_count(size) for size in sizes):
        raise ArgumentError(f"shape must be an int or a tuple of ints, each at least 0, not {shape!r}")
    return sizes


def is_count(value: Any) -> bool:
    """Whether a value is an int of at least 0; True and False are not."""
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool) and bool(value >= 0)


def check_float_dtype(dtype: torch.dtype) -> None:
    """Raise an `ArgumentError` for a dtype that the draws of floats do not make."""
    if dtype not in FLOAT_DTYPES:
        raise ArgumentError(
            f"dtype must be torch.float32, torch.float64, torch.bfloat16 or torch.float16, not {dtype!r}"
        )


def check_same_device(key: Tensor, name: str, tensor: Tensor) -> None:
    """Raise a `DeviceError` for a tensor that lives elsewhere than the key."""
    if tensor.device != key.device:
        raise DeviceError(f"key is on {key.device}, but {name} is on {tensor.device}; write key.to({name}.device)")


def two_words(name: str, value: int) -> tuple[int, int]:
    """The low and the high word of an integer of 64 bits."""
    try:
        value = index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be an integer, not {type(value).__name__} {value!r}") from None
    if not -(2**63) <= value < 2**64:
        raise ArgumentError(f"{name} must lie in [-2^63, 2^64), not {value}; hash it to 64 bits first")
    return value & WORD_MASK, (value >> 32) & WORD_MASK
