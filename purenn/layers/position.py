"""Positions: how a sequence tells its places apart.

Attention alone does not see order. `SinusoidalPosition` and `LearnedPosition` add a vector for each position to the
input; `RotaryEmbedding` turns queries and keys, so that their products depend on the distance alone; ALiBi adds a
penalty for distance to the scores (`alibi_bias`, the floating mask of attention). None keeps a counter: positions are
an argument, so that a chunk from the middle of a sequence is told where it stands.
"""

from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn import initializers
from purenn.errors import ArgumentError, ShapeError
from purenn.tree import Layer, applies, container, static


def sinusoidal_positions(
    positions: int | Int[Tensor, "*shape"],
    dim: int,
    *,
    base: float = 10000.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*shape dim"]:
    """Sines and cosines of the positions, of wave lengths from ``2 pi`` to ``2 pi base``.

    Element 2 i is ``sin(position / base^(2 i / dim))`` and element 2 i + 1 the cosine of the same angle.

    Args:
        positions: whole numbers, or how many from 0 on.
        dim: length of each vector, an even number.
        base: the longest wave length, over ``2 pi``. Default: 10000.
        dtype: of the result. Default: torch's default dtype. The angles are in float32 at least.
        device: of the result, if `positions` is a number. Default: torch's default device.

    Raises:
        ArgumentError: `dim` is odd.

    Source:
        Vaswani et al.: Attention Is All You Need, 2017, section 3.5.
    """
    _require_even("sinusoidal_positions", dim)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    places = torch.arange(positions, device=device) if isinstance(positions, int) else positions
    angles = _angles(places, dim, base, dtype)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(dtype)


@container
class SinusoidalPosition(Layer):
    """Adds `sinusoidal_positions` to its input; see `sinusoidal_position`.

    Attributes:
        base: the longest wave length, over ``2 pi``. Default: 10000.
    """

    base: float = static(default=10000.0)


@applies(SinusoidalPosition)
def sinusoidal_position(
    p: SinusoidalPosition,
    x: Float[Tensor, "*batch length dim"],
    *,
    positions: Int[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch length dim"]:
    """``x + sinusoidal_positions(positions, dim)``.

    Args:
        p: the base.
        x: the vectors of a sequence.
        positions: their positions, of a shape that broadcasts to ``[*batch, length]``. Default: 0, 1, 2 ...

    Raises:
        ArgumentError: ``dim`` is odd.
        ShapeError: the positions do not fit.
    """
    positions = _positions("sinusoidal_position", x, positions)
    return x + sinusoidal_positions(positions, x.shape[-1], base=p.base, dtype=x.dtype)


@container
class LearnedPosition(Layer):
    """Adds a learned vector for each position to its input; see `learned_position`.

    Attributes:
        weight: the vectors, ``[max_length, dim]``.
    """

    weight: Float[Tensor, "max_length dim"]

    @classmethod
    def init(
        cls,
        key: Tensor,
        max_length: int,
        dim: int,
        *,
        std: float = 0.02,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the vectors from a normal distribution.

        Args:
            key: random key.
            max_length: number of positions.
            dim: length of each vector.
            std: standard deviation. Default: 0.02.
            dtype: of the vectors; torch's default dtype if None.
            device: of the vectors; the key's device if None.
        """
        return cls(initializers.normal(key, (max_length, dim), std=std, dtype=dtype, device=device))

    def extra_repr(self) -> str:
        """The sizes, as modules write them."""
        return f"max_length={self.weight.shape[-2]}, dim={self.weight.shape[-1]}"


@applies(LearnedPosition)
def learned_position(
    p: LearnedPosition,
    x: Float[Tensor, "*batch length dim"],
    *,
    positions: Int[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch length dim"]:
    """``x + weight[positions]``.

    Args:
        p: the vectors.
        x: the vectors of a sequence.
        positions: their positions, from 0 to ``max_length - 1``, of a shape that broadcasts to ``[*batch, length]``.
            Default: 0, 1, 2 ...

    Raises:
        ShapeError: the sequence is longer than `max_length`, or the shapes do not fit.
    """
    length = x.shape[-2] if x.dim() > 1 else 0
    if x.dim() < 2 or x.shape[-1] != p.weight.shape[-1] or (positions is None and length > p.weight.shape[-2]):
        raise ShapeError(
            f"learned_position: expected [*batch, length, {p.weight.shape[-1]}] with a length of at most "
            f"{p.weight.shape[-2]}, the number of positions that were learned, got {list(x.shape)}."
        )
    if positions is None:
        return x + p.weight[:length]
    return x + torch.nn.functional.embedding(_positions("learned_position", x, positions), p.weight)


@container
class RotaryEmbedding(Layer):
    """Turns pairs of features by angles that grow with the position; see `rotary_embedding`.

    Attributes:
        dim: how many features to turn, the first ones, an even number; the others stay.
        base: the longest wave length, over ``2 pi``. Default: 10000.
        interleaved: whether neighbours make up a pair, 0 with 1, 2 with 3 (the paper's form, GPT-J's); otherwise the
            two halves do, 0 with ``dim / 2`` and so on (the form of GPT-NeoX and of Llama in most libraries). Weights
            of one form must be permuted for the other. Default: False.
    """

    dim: int = static()
    base: float = static(default=10000.0)
    interleaved: bool = static(default=False)

    @dim.validator  # pyright: ignore[reportAttributeAccessIssue]
    def _check_dim(self, _: Any, dim: int) -> None:
        _require_even("RotaryEmbedding", dim)


@applies(RotaryEmbedding)
def rotary_embedding(
    p: RotaryEmbedding,
    x: Float[Tensor, "*batch length features"],
    *,
    positions: Int[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch length features"]:
    """Turn pair i of the features at each position by the angle ``position / base^(2 i / dim)``.

    The product of a query and a key that are both turned depends on the difference of their positions alone.

    Args:
        p: the options.
        x: queries or keys; heads are among the leading dimensions.
        positions: whole numbers of a shape that broadcasts to ``[*batch, length]``. Default: 0, 1, 2 ...

    Returns:
        The result in the dtype of `x`; it is computed in float32 at least.

    Raises:
        ShapeError: `x` has fewer than `dim` features, or the positions do not fit.

    Source:
        Su et al.: RoFormer, 2021, equation 34.
    """
    if x.dim() < 2 or x.shape[-1] < p.dim:
        raise ShapeError(
            f"rotary_embedding: expected [*batch, length, features] with at least dim={p.dim} features, got "
            f"{list(x.shape)}. Split the features into heads first."
        )
    angles = _angles(_positions("rotary_embedding", x, positions), p.dim, p.base, x.dtype)
    cos, sin = angles.cos(), angles.sin()
    # A pair takes up the last dimension, or the one before it.
    pairs, axis = ((-1, 2), -1) if p.interleaved else ((2, -1), -2)
    one, other = x[..., : p.dim].unflatten(-1, pairs).unbind(axis)
    turned = torch.stack((one * cos - other * sin, one * sin + other * cos), axis).flatten(-2).to(x.dtype)
    return turned if p.dim == x.shape[-1] else torch.cat((turned, x[..., p.dim :]), -1)


def alibi_slopes(
    num_heads: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Float[Tensor, " num_heads"]:
    """The penalties of ALiBi per unit of distance, one for each head.

    For a power of two they are ``2^(-8 i / num_heads)``, i from 1 on. Otherwise they are those of the next smaller
    power of two, and after them every other one of the next larger.

    Args:
        num_heads: number of heads.
        dtype: of the result. Default: torch's default dtype.
        device: of the result. Default: torch's default device.

    Raises:
        ArgumentError: there are no heads.

    Source:
        Press, Smith, Lewis: Train Short, Test Long, 2022.
    """
    if num_heads < 1:
        raise ArgumentError(f"alibi_slopes: num_heads must be at least 1, got {num_heads}.")
    power = 1 << (num_heads.bit_length() - 1)
    exponents = [8 * i / power for i in range(1, power + 1)]
    exponents += [4 * i / power for i in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor([2.0**-exponent for exponent in exponents], dtype=dtype, device=device)


def alibi_bias(
    num_heads: int,
    queries: int,
    keys: int | None = None,
    *,
    offset: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "num_heads queries keys"]:
    """What ALiBi adds to the scores: ``-slope |i + offset - j|`` for query i and key j.

    It is the floating `mask` of attention; add ``is_causal=True`` for the paper's form, in which no later key is seen.

    Args:
        num_heads: number of heads.
        queries: number of queries.
        keys: number of keys. Default: as many as queries.
        offset: position of the first query, counted from the first key. Default: 0.
        dtype: of the result. Default: torch's default dtype.
        device: of the result. Default: torch's default device.

    Raises:
        ArgumentError: there are no heads.
    """
    slopes = alibi_slopes(num_heads, dtype=dtype, device=device)
    rows = torch.arange(offset, offset + queries, device=device)
    distances = (rows.unsqueeze(-1) - torch.arange(queries if keys is None else keys, device=device)).abs()
    return -slopes.unsqueeze(-1).unsqueeze(-1) * distances


def _angles(positions: Tensor, dim: int, base: float, dtype: torch.dtype) -> Tensor:
    # Half precision cannot tell positions above a few hundred apart.
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, dim, 2, dtype=wide, device=positions.device) / dim
    return positions.to(wide).unsqueeze(-1) * base**-exponents


def _positions(name: str, x: Tensor, positions: Tensor | None) -> Tensor:
    if x.dim() < 2:
        raise ShapeError(f"{name}: expected [*batch, length, dim], got {list(x.shape)}.")
    if positions is None:
        return torch.arange(x.shape[-2], device=x.device)
    wanted = x.shape[:-1]
    sizes = zip(reversed(positions.shape), reversed(wanted), strict=False)
    if positions.dim() > len(wanted) or any(size not in (1, other) for size, other in sizes):
        raise ShapeError(
            f"{name}: positions must broadcast to {list(wanted)}, the shape of x without its features, got "
            f"{list(positions.shape)}."
        )
    return positions


def _require_even(name: str, dim: int) -> None:
    if dim < 2 or dim % 2:
        raise ArgumentError(f"{name}: dim must be a positive even number, as features are taken in pairs, got {dim}.")
