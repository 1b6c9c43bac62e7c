"""Positions: the formulas of their papers, distances alone for rotary embeddings, and chunks that know their place."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

import purenn as pn
from purenn import layers, ops


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


@given(length=st.integers(0, 6), half=st.integers(1, 5), base=st.sampled_from([10000.0, 7.0]))
def test_sinusoidal_positions(length: int, half: int, base: float, device: torch.device) -> None:
    """Element 2 i of position n is sin(n / base^(2 i / dim)), the next one the cosine."""
    got = layers.sinusoidal_positions(length, 2 * half, base=base, dtype=torch.float64, device=device)
    assert got.shape == (length, 2 * half)
    for n in range(length):
        for i in range(half):
            angle = n / base ** (2 * i / (2 * half))
            assert abs(got[n, 2 * i] - math.sin(angle)) < 1e-12
            assert abs(got[n, 2 * i + 1] - math.cos(angle)) < 1e-12


def test_sinusoidal_position_layer(device: torch.device) -> None:
    """The layer adds them, in the input's dtype, at positions from 0 or at those given, also one set per example."""
    x = numbers(2, 5, 4, device=device)
    table = layers.sinusoidal_positions(9, 4, dtype=torch.float64, device=device)
    p = layers.SinusoidalPosition()
    same(p(x), x + table[:5])
    same(p(x[:, 3:], positions=torch.tensor([3, 4], device=device)), x[:, 3:] + table[3:5])
    places = torch.tensor([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]], device=device)
    same(p(x, positions=places), x + table[places])
    same(vmap(lambda x, places: p(x, positions=places))(x, places), x + table[places])
    assert p(x.bfloat16()).dtype == torch.bfloat16
    far = layers.sinusoidal_positions(torch.tensor([5001], device=device), 4, dtype=torch.bfloat16)
    torch.testing.assert_close(far[0, 0].item(), math.sin(5001), rtol=0.01, atol=0.01)


def test_learned_position(device: torch.device) -> None:
    """The layer adds its first rows, or those at the positions; its gradient is what reached each row."""
    p = layers.LearnedPosition.init(key(device), 6, 4, dtype=torch.float64)
    assert (p.weight.shape, repr(p)) == ((6, 4), "LearnedPosition(max_length=6, dim=4)")
    assert abs(layers.LearnedPosition.init(key(device), 100, 100).weight.std() / 0.02 - 1) < 0.05
    x = numbers(2, 5, 4, device=device)
    same(p(x), x + p.weight[:5])
    places = torch.tensor([[0, 1, 2, 3, 3], [5, 5, 5, 0, 1]], device=device)
    same(p(x, positions=places), x + p.weight[places])
    found = pn.grad(lambda p: p(x, positions=places).sum())(p).weight
    same(found, torch.bincount(places.flatten(), minlength=6).double()[:, None].expand(6, 4))
    assert layers.LearnedPosition.init(key(device), 10**7, 10**4, device="meta").weight.is_meta


@given(
    half=st.integers(1, 4),
    rest=st.integers(0, 2),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    interleaved=st.booleans(),
    base=st.sampled_from([10000.0, 5.0]),
)
def test_rotary_is_a_complex_product(
    half: int, rest: int, batch: tuple[int, ...], interleaved: bool, base: float, device: torch.device
) -> None:
    """Pairs are complex numbers that are multiplied by exp(i angle); features beyond dim stay as they are."""
    p = layers.RotaryEmbedding(2 * half, base, interleaved)
    x = numbers(*batch, 5, 2 * half + rest, device=device)
    front = x[..., : 2 * half]
    parts = (front[..., ::2], front[..., 1::2]) if interleaved else front.chunk(2, -1)
    frequencies = base ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angles = torch.arange(5, device=device)[:, None] * frequencies
    turned = torch.complex(*(part.contiguous() for part in parts)) * torch.polar(torch.ones_like(angles), angles)
    y = layers.rotary_embedding(p, x)
    got = (y[..., : 2 * half : 2], y[..., 1 : 2 * half : 2]) if interleaved else y[..., : 2 * half].chunk(2, -1)
    same(got, (turned.real, turned.imag))
    assert torch.equal(y[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_products_depend_on_distances(interleaved: bool, device: torch.device) -> None:
    """The scores of turned queries and keys do not change when all positions are shifted; lengths never do."""
    p = layers.RotaryEmbedding(6, interleaved=interleaved)
    q, k = numbers(4, 6, device=device), numbers(4, 6, seed=1, device=device)
    places = torch.arange(4, device=device)

    def scores(shift: int) -> Tensor:
        return p(q, positions=places + shift) @ p(k, positions=places + shift).mT

    same(scores(0), scores(17), tolerance=1e-9)
    same(p(q).norm(dim=-1), q.norm(dim=-1))


def test_rotary_forms_are_permutations(device: torch.device) -> None:
    """The two forms are one, up to the order of the features."""
    x = numbers(5, 8, device=device)
    order = torch.arange(8, device=device).reshape(2, 4).T.flatten()
    same(layers.RotaryEmbedding(8, interleaved=True)(x[:, order]), layers.RotaryEmbedding(8)(x)[:, order])


def test_rotary_precision_and_positions(device: torch.device) -> None:
    """Half precision is turned in float32; positions may differ among examples."""
    p = layers.RotaryEmbedding(4)
    x = numbers(2, 3, 4, device=device)
    places = torch.tensor([[0, 1, 2], [4000, 4001, 4002]], device=device)
    y = p(x, positions=places)
    same(y[1], p(x[1], positions=places[1]))
    assert p(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(p(x.bfloat16(), positions=places).double(), y, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2.0**-8]),
        (2, [2.0**-4, 2.0**-8]),
        (8, [2.0**-i for i in range(1, 9)]),
        (3, [2.0**-4, 2.0**-8, 2.0**-2]),
        (6, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]),
        (12, [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]),
    ],
)
def test_alibi_slopes(heads: int, expected: list[float], device: torch.device) -> None:
    """The slopes are the paper's, for powers of two and for other numbers of heads."""
    got = layers.alibi_slopes(heads, dtype=torch.float64, device=device)
    same(got, torch.tensor(expected, dtype=torch.float64, device=device))


def test_alibi_bias(device: torch.device) -> None:
    """The bias is minus slope times distance, for a chunk in the middle too, and is a mask of attention."""
    got = layers.alibi_bias(2, 2, 4, offset=1, dtype=torch.float64, device=device)
    distances = torch.tensor([[1, 0, 1, 2], [2, 1, 0, 1]], device=device)
    same(got, torch.stack((-distances / 16, -distances / 256)).double())
    q = numbers(3, 2, 5, 4, device=device)
    bias = layers.alibi_bias(2, 5, dtype=torch.float64, device=device)
    allowed = ops.causal_mask(5, device=device)
    expected = ((q @ q.mT / 2 + bias).masked_fill(~allowed, -math.inf)).softmax(-1) @ q
    same(ops.scaled_dot_product_attention(q, q, q, mask=bias, is_causal=True), expected)


TABLE: dict[str, Any] = {
    "sinusoidal": lambda seed: layers.SinusoidalPosition(),
    "learned": lambda seed: layers.LearnedPosition(numbers(5, 4, seed=seed)),
    "rotary": lambda seed: layers.RotaryEmbedding(4),
    "rotary, interleaved, partial": lambda seed: layers.RotaryEmbedding(2, interleaved=True),
}


@pytest.mark.parametrize("name", TABLE)
def test_transformations(name: str, device: torch.device) -> None:
    """Every layer keeps the promises of the shared table."""
    check_transformations(
        lambda seed: pn.tree.to(TABLE[name](seed), device), lambda p, x: p(x), numbers(3, 2, 3, 4, device=device)
    )


@pytest.mark.parametrize("name", TABLE)
def test_positions_under_transformations(name: str, device: torch.device) -> None:
    """So it does with positions, which may differ among the examples of a vmap."""
    check_transformations(
        lambda seed: {"p": pn.tree.to(TABLE[name](seed), device), "at": torch.tensor([seed, 2, 4], device=device)},
        lambda p, x: p["p"](x, positions=p["at"]),
        numbers(3, 2, 3, 4, device=device),
        compile=False,
    )


X = torch.zeros(2, 5, 4)
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: layers.sinusoidal_positions(3, 5),
        pn.errors.ArgumentError,
        "sinusoidal_positions: dim must be a positive even number, as features are taken in pairs, got 5.",
    ),
    (
        lambda: layers.RotaryEmbedding(3),
        pn.errors.ArgumentError,
        "RotaryEmbedding: dim must be a positive even number, as features are taken in pairs, got 3.",
    ),
    (
        lambda: layers.rotary_embedding(layers.RotaryEmbedding(6), X),
        pn.errors.ShapeError,
        "rotary_embedding: expected [*batch, length, features] with at least dim=6 features, got [2, 5, 4]. Split the "
        "features into heads first.",
    ),
    (
        lambda: layers.rotary_embedding(layers.RotaryEmbedding(4), X, positions=torch.arange(4)),
        pn.errors.ShapeError,
        "rotary_embedding: positions must broadcast to [2, 5], the shape of x without its features, got [4].",
    ),
    (
        lambda: layers.learned_position(layers.LearnedPosition(torch.zeros(4, 4)), X),
        pn.errors.ShapeError,
        "learned_position: expected [*batch, length, 4] with a length of at most 4, the number of positions that were "
        "learned, got [2, 5, 4].",
    ),
    (
        lambda: layers.sinusoidal_position(layers.SinusoidalPosition(), torch.zeros(4)),
        pn.errors.ShapeError,
        "sinusoidal_position: expected [*batch, length, dim], got [4].",
    ),
    (
        lambda: layers.alibi_slopes(0),
        pn.errors.ArgumentError,
        "alibi_slopes: num_heads must be at least 1, got 0.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    """What does not fit is refused with what was expected, what came, and what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
