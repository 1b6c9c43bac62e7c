"""Initializers of matrices whose elements depend on each other."""

import math

import torch
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.initializers._arguments import Device, Shape, check_number, drawn
from purenn.initializers._drawn import normal
from purenn.random._arguments import check_shape
from purenn.random._words import compute_dtype


def orthogonal(
    key: Tensor, shape: Shape, *, gain: float = 1.0, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """A matrix with orthonormal rows or columns, whichever are fewer, all such matrices equally likely.

    Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", 2013. By the QR decomposition of a normal matrix, with the signs of Mezzadri, "How to generate random
    matrices from the classical compact groups", 2007. Devices may differ in the last bits.

    Args:
        key: A random key.
        shape: ``(rows, *columns)``: all dimensions but the first are the columns of the matrix.
        gain: A factor.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None. The short ones are rounded from
            float32.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When `key`, `gain` or `dtype` is not as above, or `shape` not one of two dimensions or more.
    """
    check_number("gain", gain)
    sizes = check_shape(shape)
    if len(sizes) < 2:
        raise ArgumentError(f"shape must have 2 dimensions or more for an orthogonal matrix, not {list(sizes)}")
    rows, columns = sizes[0], math.prod(sizes[1:])

    def draw(key: Tensor, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tall = random.normal(key, (max(rows, columns), min(rows, columns)), dtype=compute_dtype(dtype))
        q, r = torch.linalg.qr(tall)
        # The decomposition fixes its signs by an arbitrary rule; a positive diagonal of R makes it unique.
        q = q * torch.where(r.diagonal() < 0, -gain, gain)
        return (q.T if rows < columns else q).reshape(sizes)

    return drawn(key, sizes, dtype, device, draw)


def sparse(
    key: Tensor,
    shape: Shape,
    *,
    sparsity: float,
    std: float = 0.01,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """A matrix of normally distributed numbers with the same number of zeros in each column, at random places.

    Martens, "Deep learning via Hessian-free optimization", 2010. The result is an ordinary dense tensor.

    Args:
        key: A random key.
        shape: ``(rows, columns)``.
        sparsity: The share of zeros, in [0, 1]: each column gets ``ceil(sparsity * rows)`` of them.
        std: The standard deviation of the other elements, whose mean is 0.
        dtype: float32, float64, bfloat16 or float16; torch's default dtype if None.
        device: The result's; the key's device if None. Nothing is drawn on "meta".

    Raises:
        ArgumentError: When `key`, `sparsity`, `std` or `dtype` is not as above, or `shape` not one of two dimensions.
    """
    check_number("sparsity", sparsity)
    if not 0 <= sparsity <= 1:
        raise ArgumentError(f"sparsity must be a share, a number in [0, 1], not {sparsity!r}")
    check_number("std", std, least=0)
    sizes = check_shape(shape)
    if len(sizes) != 2:
        raise ArgumentError(f"shape must be (rows, columns) for a sparse matrix, not {list(sizes)}")
    zeros = math.ceil(sparsity * sizes[0])

    def draw(key: Tensor, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        value_key, order_key = random.split(key)
        values = normal(value_key, sizes, std=std, dtype=dtype)
        # A random order of the rows for each column: the first few of it become zeros. With 53 bits ties are rare.
        order = random.uniform(order_key, sizes, dtype=torch.float64).argsort(dim=0, stable=True)
        return values.scatter(0, order[:zeros], 0.0)

    return drawn(key, sizes, dtype, device, draw)
