"""The arguments that all initializers take, and what is done with them."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.random._arguments import check_float_dtype, check_key, check_shape

Shape: TypeAlias = int | Sequence[int]
Device: TypeAlias = torch.device | str | None


def check_number(name: str, value: float, *, least: float = -math.inf) -> None:
    """Raise an `ArgumentError` for what is not a finite number of at least `least`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= least:
        return
    bound = "" if least == -math.inf else f" of at least {least:g}"
    raise ArgumentError(f"{name} must be a finite number{bound}, not {value!r}")


def target_of(key: Tensor | None, dtype: torch.dtype | None, device: Device) -> tuple[torch.dtype, torch.device]:
    """The dtype and the device of the result.

    Args:
        key: A random key, or None for a result without randomness.
        dtype: Torch's default dtype if None.
        device: The key's device if None, or torch's default device without a key.
    """
    if key is not None:
        check_key(key)
    if dtype is None:
        dtype = torch.get_default_dtype()
    elif not isinstance(dtype, torch.dtype):
        raise ArgumentError(f"dtype must be a torch.dtype or None, not {dtype!r}")
    if device is not None:
        return dtype, torch.device(device)
    return dtype, torch.get_default_device() if key is None else key.device


def drawn(
    key: Tensor,
    shape: Shape,
    dtype: torch.dtype | None,
    device: Device,
    draw: Callable[[Tensor, tuple[int, ...], torch.dtype], Tensor],
) -> Tensor:
    """What `draw` makes of the key, the shape and the dtype; on the meta device a tensor without numbers.

    Args:
        key: A random key.
        shape: The result's.
        dtype: The result's; torch's default dtype if None.
        device: The result's; the key's device if None.
        draw: Is called with the key on the result's device. Its result is rounded to the dtype.
    """
    check_key(key)
    sizes = check_shape(shape)
    dtype, device = target_of(key, dtype, device)
    check_float_dtype(dtype)
    if device.type == "meta":
        return torch.empty(sizes, dtype=dtype, device=device)
    return draw(key.to(device), sizes, dtype).to(dtype)
