"""Draws of bits, floats and booleans, each a function of a key and a shape."""

import math

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.random._arguments import Shape, check_float_dtype, check_key, check_same_device, check_shape
from purenn.random._arrays import Array
from purenn.random._generate import Convert, generate
from purenn.random._strict import record_use
from purenn.random._words import (
    FARTHEST_BOUND,
    compute_dtype,
    normal_floats,
    truncated_normal_floats,
    uniform_floats,
)


def bits(key: Tensor, shape: Shape) -> Tensor:
    """Random 32-bit words: integers from 0 to 2^32 - 1, all equally likely.

    Args:
        key: A key, int64 [2].
        shape: The result's.

    Returns:
        An int64 tensor of that shape on the key's device.

    Raises:
        ArgumentError: When `key` is not a key or `shape` not a shape.
    """
    return draw(key, shape, lambda words: (words,), per_block=4, dtype=torch.int64)


def uniform(
    key: Tensor, shape: Shape, *, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Floats spread evenly over [low, high).

    ``low + (high - low) u`` with u a multiple of 2^-p in [0, 1), where p is the number of significant bits of the
    dtype (53, 24, 11, 8). With a `low` other than 0 the sum may round to `high` itself.

    Args:
        key: A key, int64 [2].
        shape: The result's.
        low: The smallest value.
        high: The bound that values stay below.
        dtype: float32, float64, bfloat16 or float16.

    Returns:
        A tensor of that shape and dtype on the key's device.

    Raises:
        ArgumentError: When `key` is not a key, `shape` not a shape, `dtype` not one of those, or unless low <= high,
            both finite in that dtype, and ``high - low`` in the one that it is computed in.
    """
    check_float_dtype(dtype)
    are_numbers = isinstance(low, int | float) and isinstance(high, int | float)
    if not (are_numbers and -math.inf < low <= high < math.inf):
        raise ArgumentError(f"low and high must be finite numbers, low <= high, not low={low!r} and high={high!r}")
    largest = torch.finfo(dtype).max
    if low < -largest or high > largest or high - low > torch.finfo(compute_dtype(dtype)).max:
        raise ArgumentError(
            f"low={low!r} and high={high!r} are too far out for {dtype}, whose largest number is {largest!r}; "
            "choose a longer dtype or nearer bounds"
        )

    def convert(words: Array) -> tuple[Array]:
        numbers = uniform_floats(words, dtype)
        if (low, high) != (0, 1):
            numbers *= high - low
            numbers += low
        return (numbers,)

    return draw(key, shape, convert, per_block=2 if dtype == torch.float64 else 4, dtype=dtype)


def normal(key: Tensor, shape: Shape, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal floats: mean 0, standard deviation 1; scale and shift them as you need.

    The numbers come from the transform of Box and Muller ("A note on the generation of random normal deviates",
    1958), computed in float32, or in float64 for that dtype, from correctly rounded operations alone: CPU and CUDA
    give the same bits in eager mode, and so does code compiled for the CPU, and by `pn.jit` for CUDA. `torch.compile`
    for CUDA fuses multiplications with additions, which may change the last bits.

    Args:
        key: A key, int64 [2].
        shape: The result's.
        dtype: float32, float64, bfloat16 or float16.

    Returns:
        A tensor of that shape and dtype on the key's device; no number is beyond 6.77 (float64: 8.66).

    Raises:
        ArgumentError: When `key` is not a key, `shape` not a shape, or `dtype` not one of those.
    """
    check_float_dtype(dtype)
    internal = compute_dtype(dtype)
    return draw(
        key,
        shape,
        lambda words: normal_floats(words, internal),
        per_block=2 if dtype == torch.float64 else 4,
        dtype=dtype,
    )


def truncated_normal(
    key: Tensor, shape: Shape, *, lower: float = -2.0, upper: float = 2.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal floats on the condition that they lie between two bounds.

    By the inverse of the distribution function in float64, precise in far tails too. Rounded to float32 or shorter,
    the numbers agree between devices but for about one in 10^8, which may differ in its last bit.

    Args:
        key: A key, int64 [2].
        shape: The result's.
        lower: The lower bound; may be ``-math.inf``.
        upper: The upper bound; may be ``math.inf``.
        dtype: float32, float64, bfloat16 or float16.

    Returns:
        A tensor of that shape and dtype on the key's device.

    Raises:
        ArgumentError: When `key` is not a key, `shape` not a shape, `dtype` not one of those, unless lower < upper,
            or when both bounds are so far out (beyond 38) on one side that no float64 lies between them.
    """
    check_float_dtype(dtype)
    if not (isinstance(lower, int | float) and isinstance(upper, int | float) and lower < upper):
        raise ArgumentError(f"lower and upper must be numbers, lower < upper, not lower={lower!r} and upper={upper!r}")
    if max(lower, -upper) > FARTHEST_BOUND:
        raise ArgumentError(
            f"lower={lower!r} and upper={upper!r} lie where the normal distribution has no weight left in float64; "
            f"choose bounds of which one is within {FARTHEST_BOUND} of the mean"
        )
    return draw(
        key,
        shape,
        lambda words: (truncated_normal_floats(words, lower, upper),),
        per_block=2,
        dtype=dtype,
    )


def bernoulli(key: Tensor, shape: Shape, *, p: float | Tensor = 0.5) -> Tensor:
    """Booleans that are True with probability p.

    The probability is met to within 2^-33, and 0 and 1 exactly.

    Args:
        key: A key, int64 [2].
        shape: The result's.
        p: A number in [0, 1], or a float tensor of them that broadcasts to `shape`. A tensor's values are not checked:
            they act as if clamped to [0, 1], and NaN as 0.

    Returns:
        A bool tensor of that shape on the key's device.

    Raises:
        ArgumentError: When `key` is not a key, `shape` not a shape, or `p` not a probability of that shape.
        DeviceError: When `p` is a tensor on another device than the key.
    """
    if isinstance(p, Tensor):
        return _bernoulli_of_tensor(key, shape, p)
    if not (isinstance(p, int | float) and 0 <= p <= 1):
        raise ArgumentError(f"p must be a probability, a number in [0, 1] or a float tensor, not {p!r}")
    threshold = round(p * 2**32)
    return draw(key, shape, lambda words: (words < threshold,), per_block=4, dtype=torch.bool)


def draw(key: Tensor, shape: Shape, convert: Convert, *, per_block: int, dtype: torch.dtype) -> Tensor:
    """Check, generate and note the key's use: what every draw does."""
    check_key(key)
    sizes = check_shape(shape)
    numbers = generate(key, sizes, convert, per_block=per_block, dtype=dtype)
    # A call that was refused is no use.
    record_use(key)
    return numbers


def _bernoulli_of_tensor(key: Tensor, shape: Shape, p: Tensor) -> Tensor:
    sizes = check_shape(shape)
    if not p.is_floating_point():
        raise ArgumentError(f"p must be a float tensor of probabilities, not one of {p.dtype}")
    check_key(key)
    check_same_device(key, "p", p)
    try:
        fits = torch.broadcast_shapes(p.shape, sizes) == sizes
    except RuntimeError:
        fits = False
    if not fits:
        raise ArgumentError(f"p of shape {list(p.shape)} does not broadcast to the shape {list(sizes)} of the draw")
    # In float64 every word and every product with 2^32 is exact.
    return bits(key, shape).to(torch.float64) < p.to(torch.float64) * 2**32
