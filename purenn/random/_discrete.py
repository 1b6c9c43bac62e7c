"""Draws that choose: permutations, and categories by their weights."""

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.random._arguments import Shape, check_float_dtype, check_key, check_same_device, check_shape, is_count
from purenn.random._arrays import Array, halves
from purenn.random._draws import draw
from purenn.random._words import compute_dtype, gumbel_floats


def permutation(key: Tensor, x: int | Tensor) -> Tensor:
    """A random order of the integers below x, or of the rows of x.

    By sorting 63-bit random numbers; two of n are equal with probability n^2 / 2^64, and then keep their order.

    Args:
        key: A key, int64 [2].
        x: How many integers, or a tensor [n, ...] to shuffle along its first dimension; a shuffled tensor is
            differentiable in x.

    Returns:
        An int64 tensor [x], or a tensor like x, on the key's device.

    Raises:
        ArgumentError: When `key` is not a key, or `x` neither an int of at least 0 nor a tensor with a dimension.
        DeviceError: When `x` is a tensor on another device than the key.
    """
    check_key(key)
    if isinstance(x, Tensor):
        if x.dim() == 0:
            raise ArgumentError("x must be an int or a tensor with at least one dimension, not a tensor without any")
        check_same_device(key, "x", x)
        count = x.shape[0]
    elif is_count(x):
        count = x
    else:
        raise ArgumentError(f"x must be an int of at least 0 or a tensor to shuffle, not {x!r}")

    order = torch.argsort(draw(key, count, _long_integers, per_block=2, dtype=torch.int64), stable=True)
    return x.index_select(0, order) if isinstance(x, Tensor) else order


def _long_integers(words: Array) -> tuple[Array]:
    even, odd = halves(words)
    return (((even >> 1) << 32) | odd,)


def categorical(key: Tensor, logits: Tensor, *, shape: Shape | None = None, dim: int = -1) -> Tensor:
    """Indices drawn with probabilities ``softmax(logits, dim)``.

    The index of the largest sum of a logit and Gumbel noise (Gumbel 1954), which needs no normalised weights. A logit
    of -inf is never chosen, unless all are.

    Args:
        key: A key, int64 [2].
        logits: Unnormalised logarithms of the probabilities, floats.
        shape: The result's; must be `logits.shape` without `dim`, or end so that it broadcasts to it: a leading size
            is a number of independent draws. `logits.shape` without `dim` when None.
        dim: The dimension of `logits` that counts the categories.

    Returns:
        An int64 tensor of that shape on the key's device.

    Raises:
        ArgumentError: When `key` is not a key, `logits` has no such dimension, no categories or not a float dtype, or
            `shape` does not fit.
        DeviceError: When `logits` is on another device than the key.
    """
    check_key(key)
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        raise ArgumentError("logits must be a tensor with at least one dimension, the categories")
    check_float_dtype(logits.dtype)
    check_same_device(key, "logits", logits)
    if not isinstance(dim, int) or isinstance(dim, bool) or not -logits.dim() <= dim < logits.dim():
        raise ArgumentError(f"dim must be a dimension of logits, which has {logits.dim()}, not {dim!r}")
    logits = logits.movedim(dim, -1)
    *batch, categories = logits.shape
    if categories == 0:
        raise ArgumentError(f"logits of shape {list(logits.shape)} has no categories to choose from")
    sizes = tuple(batch) if shape is None else check_shape(shape)
    if sizes[len(sizes) - len(batch) :] != tuple(batch):
        raise ArgumentError(
            f"shape {list(sizes)} does not end in {list(batch)}, the shape of logits without its categories"
        )
    dtype = compute_dtype(logits.dtype)
    noise = draw(
        key,
        (*sizes, categories),
        lambda words: (gumbel_floats(words, dtype),),
        per_block=2 if dtype == torch.float64 else 4,
        dtype=dtype,
    )
    return (noise + logits).argmax(-1)
