"""Cosine similarity and pairwise distance: equal to torch.nn's, with derivatives also where vectors vanish or agree."""

from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, vmap

import purenn as pn
from purenn import layers
from purenn.layers import CosineSimilarity, PairwiseDistance, cosine_similarity, pairwise_distance

SHAPES = [((4, 3), (4, 3)), ((2, 4, 3), (2, 4, 3)), ((2, 4, 3), (1, 4, 3)), ((2, 4, 1), (2, 4, 3))]


@given(shapes=st.sampled_from(SHAPES), dim=st.sampled_from([0, 1, -2]), eps=st.sampled_from([1e-8, 0.5]))
def test_cosine_similarity_equals_torch(shapes: Any, dim: int, eps: float, device: torch.device) -> None:
    """Values and derivatives are torch's along every dimension, with broadcasting in the others."""
    x1, x2 = numbers(*shapes[0], device=device), numbers(*shapes[1], seed=1, device=device)
    if x1.shape[dim] != x2.shape[dim]:
        return
    check_equals_module(CosineSimilarity(dim, eps), cosine_similarity, nn.CosineSimilarity(dim, eps), x1, x2)


@given(
    shapes=st.sampled_from([((3,), (3,)), ((4, 3), (4, 3)), ((4, 3), (3,)), ((2, 1, 3), (4, 3))]),
    norm=st.sampled_from([0.5, 1, 2, 3, -1.0, float("inf")]),
    eps=st.sampled_from([1e-6, 0.1]),
    keepdim=st.booleans(),
)
def test_pairwise_distance_equals_torch(
    shapes: Any, norm: float, eps: float, keepdim: bool, device: torch.device
) -> None:
    """Values and derivatives are torch's in every norm."""
    x1, x2 = numbers(*shapes[0], device=device), numbers(*shapes[1], seed=1, device=device)
    options = (norm, eps, keepdim)
    check_equals_module(PairwiseDistance(*options), pairwise_distance, nn.PairwiseDistance(*options), x1, x2)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize(
    "p",
    [CosineSimilarity(-1), CosineSimilarity(0), CosineSimilarity(-1, eps=2.0)]
    + [PairwiseDistance(norm) for norm in (1.0, 2.0, 3.0, float("inf"))],
)
def test_transformations(p: Any, batch: tuple[int, ...], device: torch.device) -> None:
    """Both keep the promises of the shared table."""
    x = numbers(2, *batch, 4, device=device)

    def apply(p: Any, x: Tensor) -> Tensor:
        return p(x, x.flip(-1) ** 2 + 0.3)

    if isinstance(p, CosineSimilarity) and p.eps > 1:
        # torch differentiates the norm where it is cut off; the formula has no derivative of it there.
        check_transformations(lambda seed: p, lambda p, x: vmap(lambda x: apply(p, x))(x[None])[0], x, compile=False)
    else:
        check_transformations(lambda seed: p, apply, x)


def test_vectors_of_zeros(device: torch.device) -> None:
    """The first derivatives at zero are torch's, and the second are those of the formula under transformations."""
    v = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64, device=device)
    p, zero = CosineSimilarity(0, eps=1e-3), torch.zeros_like(v)
    at_zero = zero.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cosine_similarity(p, at_zero, v), at_zero)
    same(expected, v / v.norm() / 1e-3)
    same(grad(lambda x: cosine_similarity(p, x, v))(zero), expected)
    same(jacfwd(lambda x: cosine_similarity(p, x, v))(zero), expected)
    same(hessian(lambda x: cosine_similarity(p, x, v))(zero), torch.zeros(3, 3, dtype=v.dtype, device=device))


def test_equal_vectors(device: torch.device) -> None:
    """The distance of a vector from itself has finite derivatives, the first two of torch's formula."""
    x = numbers(3, device=device)
    for norm in (1.0, 2.0, 3.0):
        p = PairwiseDistance(norm)
        for derivative in (grad, hessian):
            assert derivative(lambda y, p=p: pairwise_distance(p, y, x))(x).isfinite().all()


@pytest.mark.parametrize("p", [CosineSimilarity(), PairwiseDistance()])
def test_half_precision(p: Any, device: torch.device) -> None:
    """In bfloat16 results are torch's, up to rounding under vmap."""
    x1, x2 = numbers(3, 4, 5, device=device).bfloat16(), numbers(3, 4, 5, seed=1, device=device).bfloat16()
    expected = getattr(nn, type(p).__name__)()(x1, x2)
    assert torch.equal(p(x1, x2), expected)
    same(vmap(p)(x1.unsqueeze(0), x2.unsqueeze(0))[0].float(), expected.float(), tolerance=0.03)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: layers.PairwiseDistance()(torch.zeros(4, 3), torch.zeros(4, 1)),
            "pairwise_distance: x1 and x2 must have the same size in dimension -1, and sizes that can be broadcast in "
            "the others, got shapes [4, 3] and [4, 1].",
        ),
        (
            lambda: layers.CosineSimilarity()(torch.zeros(4, 3), torch.zeros(5, 3)),
            "cosine_similarity: x1 and x2 must have the same size in dimension 1, and sizes that can be broadcast in "
            "the others, got shapes [4, 3] and [5, 3].",
        ),
        (
            lambda: layers.CosineSimilarity()(torch.zeros(3), torch.zeros(3)),
            "cosine_similarity: x1 and x2 must have the same size in dimension 1, and sizes that can be broadcast in "
            "the others, got shapes [3] and [3].",
        ),
        (
            lambda: layers.CosineSimilarity(0)(torch.zeros(4, 3), torch.zeros(3)),
            "cosine_similarity: x1 and x2 must have the same size in dimension 0, and sizes that can be broadcast in "
            "the others, got shapes [4, 3] and [3].",
        ),
    ],
)
def test_errors(call: Any, text: str) -> None:
    """Vectors of different sizes are refused, also where they could be broadcast."""
    with pytest.raises(pn.errors.ShapeError) as caught:
        call()
    assert str(caught.value) == text
