"""Initializers without randomness: constants and identities. They take a key like the others, or None."""

import torch
from torch import Tensor
from torch.nn import functional as F

from purenn.errors import ArgumentError
from purenn.initializers._arguments import Device, Shape, target_of
from purenn.random._arguments import check_shape


def constant(
    key: Tensor | None,
    shape: Shape,
    *,
    value: float,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """One value everywhere.

    Args:
        key: Gives the device if `device` is None; may be None.
        shape: The result's.
        value: The value, which is converted to the dtype.
        dtype: The result's, any; torch's default dtype if None.
        device: The result's; the key's device if None, or torch's default device without a key.

    Raises:
        ArgumentError: When `key` is neither a key nor None, `shape` not a shape, or `value` not a number.
    """
    if not isinstance(value, int | float | complex):
        raise ArgumentError(f"value must be a number, not {value!r}")
    sizes = check_shape(shape)
    dtype, device = target_of(key, dtype, device)
    return torch.full(sizes, value, dtype=dtype, device=device)


def zeros(key: Tensor | None, shape: Shape, *, dtype: torch.dtype | None = None, device: Device = None) -> Tensor:
    """Zero everywhere: `constant` with the value 0, with the same arguments and errors."""
    return constant(key, shape, value=0, dtype=dtype, device=device)


def ones(key: Tensor | None, shape: Shape, *, dtype: torch.dtype | None = None, device: Device = None) -> Tensor:
    """One everywhere: `constant` with the value 1, with the same arguments and errors."""
    return constant(key, shape, value=1, dtype=dtype, device=device)


def eye(key: Tensor | None, shape: Shape, *, dtype: torch.dtype | None = None, device: Device = None) -> Tensor:
    """The identity matrix: a linear layer that hands on as many of its inputs as it can.

    Args:
        key: Gives the device if `device` is None; may be None.
        shape: ``(out_features, in_features)``.
        dtype: The result's, any; torch's default dtype if None.
        device: The result's; the key's device if None, or torch's default device without a key.

    Raises:
        ArgumentError: When `key` is neither a key nor None, or `shape` not one of two dimensions.
    """
    sizes = check_shape(shape)
    if len(sizes) != 2:
        raise ArgumentError(
            f"shape must be (out_features, in_features) for an identity matrix, not {list(sizes)}; "
            "for the weight of a convolution use dirac"
        )
    dtype, device = target_of(key, dtype, device)
    return torch.eye(*sizes, dtype=dtype, device=device)


def dirac(
    key: Tensor | None,
    shape: Shape,
    *,
    groups: int = 1,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """The weight of a convolution that hands on as many of its input channels as it can, in each group.

    Within a group, output channel i has a single 1, at input channel i in the middle of the kernel (at ``size // 2``),
    as long as there is an input channel i.

    Args:
        key: Gives the device if `device` is None; may be None.
        shape: ``(out_channels, in_channels / groups, *kernel)`` with a kernel of 1, 2 or 3 dimensions.
        groups: The convolution's.
        dtype: The result's, any; torch's default dtype if None.
        device: The result's; the key's device if None, or torch's default device without a key.

    Raises:
        ArgumentError: When `key` is neither a key nor None, `shape` not one of three to five dimensions, or `groups`
            does not divide ``out_channels``.
    """
    sizes = check_shape(shape)
    if not 3 <= len(sizes) <= 5:
        raise ArgumentError(
            "shape must be (out_channels, in_channels / groups, *kernel) with a kernel of 1, 2 or 3 dimensions, "
            f"not {list(sizes)}; for a matrix use eye"
        )
    out_channels, in_channels, *kernel = sizes
    if not isinstance(groups, int) or groups < 1 or out_channels % groups:
        raise ArgumentError(
            f"groups must be an int of at least 1 that divides the out_channels={out_channels} of shape {list(sizes)}, "
            f"not {groups!r}"
        )
    dtype, device = target_of(key, dtype, device)
    channels = torch.eye(out_channels // groups, in_channels, dtype=dtype, device=device).repeat(groups, 1)
    # Zeros before and after the middle, from the last dimension to the first.
    around = [width for size in reversed(kernel) for width in (size // 2, size - size // 2 - 1)]
    return F.pad(channels.reshape(out_channels, in_channels, *(1 for _ in kernel)), around)
