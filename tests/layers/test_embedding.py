"""Embedding: equal to torch.nn's with all its options, and pure."""

from typing import Any

import pytest
import torch
from _reference import check_equals_module, filled, same
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, vmap

import purenn as pn
from purenn import layers
from purenn.layers import Embedding, embedding

TABLE = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def some_indices(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """Indices into the table, with repetitions."""
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(seed)).to(device)


@given(
    padding_idx=st.sampled_from([None, 0, 3, -1]),
    max_norm=st.sampled_from([None, 0.5, 1.5]),
    norm_type=st.sampled_from([1.0, 2.0, 3.0]),
    scale_grad_by_freq=st.booleans(),
    shape=st.sampled_from([(), (0,), (5,), (2, 6), (2, 2, 3)]),
    seed=st.integers(0, 9),
)
def test_embedding_equals_torch(shape: tuple[int, ...], seed: int, device: torch.device, **options: Any) -> None:
    """Values and gradients are torch's for every combination of options and for indices of any shape."""
    module = nn.Embedding(7, 3, **options, dtype=torch.float64, device=device)
    p = filled(Embedding.init(pn.random.key(0, device=device), 7, 3, **options), module)
    indices = some_indices(*shape, seed=seed, device=device)
    ours, theirs = embedding(p, indices), module(indices)
    same(ours, theirs)
    of_ours, of_theirs = (
        torch.autograd.grad(torch.sin(y).sum(), table) for y, table in ((ours, p.weight), (theirs, module.weight))
    )
    same(of_ours, of_theirs)


def test_plain_embedding_equals_torch_twice(device: torch.device) -> None:
    """Without options second derivatives are torch's too, and the module itself may stand in the container's place."""
    module = nn.Embedding(7, 3, padding_idx=2, dtype=torch.float64, device=device)
    p = Embedding.init(pn.random.key(0, device=device), 7, 3, 2)
    check_equals_module(p, embedding, module, some_indices(4, 5, device=device))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_dtypes_of_indices(dtype: torch.dtype, device: torch.device) -> None:
    """Indices may be 32 or 64 bits wide, with all options."""
    p = Embedding(TABLE.to(device), max_norm=1.0, scale_grad_by_freq=True)
    indices = some_indices(4, device=device)
    same(embedding(p, indices.to(dtype)), embedding(p, indices))


def test_max_norm_leaves_the_table(device: torch.device) -> None:
    """The vectors that come out are short enough; the table keeps the long ones."""
    p = Embedding(TABLE.to(device), max_norm=0.7)
    indices = torch.arange(7, device=device)
    check_purity(embedding, p, indices)
    assert embedding(p, indices).norm(dim=-1).max() <= 0.7
    assert p.weight.norm(dim=-1).max() > 0.7


def test_padding_gets_no_gradient(device: torch.device) -> None:
    """The padding vector is looked up like any other, but its gradient is zero."""
    p = Embedding(TABLE.to(device), padding_idx=2)
    indices = torch.tensor([2, 1, 2], device=device)
    same(embedding(p, indices), p.weight[indices])
    gradient = pn.grad(lambda p: embedding(p, indices).sum())(p).weight
    same(gradient.sum(-1), torch.tensor([0.0, 3, 0, 0, 0, 0, 0], dtype=torch.float64, device=device))


def test_frequency_is_that_of_the_example(device: torch.device) -> None:
    """Under vmap gradients are divided by the counts within each example, as a loop does, also in second order."""
    indices = some_indices(3, 6, device=device)

    def loss(table: Tensor, indices: Tensor) -> Tensor:
        return torch.sin(embedding(Embedding(table, scale_grad_by_freq=True), indices)).sum()

    table = TABLE.to(device)
    expected = torch.stack([grad(loss)(table, one) for one in indices])
    same(vmap(grad(loss), (None, 0))(table, indices), expected)
    # d/dG of <v, scale(G)>, G the gradient of the vectors, is scale(v): the rule is linear, and is its own derivative.
    counts = torch.bincount(indices[0], minlength=7).clamp(min=1).unsqueeze(-1)
    plain = torch.func.hessian(lambda t: torch.sin(t[indices[0]]).sum())(table).reshape(21, 21).diag().view(7, 3)
    twice = grad(lambda t: grad(loss)(t, indices[0]).sum())(table)
    same(twice, plain / counts**2)


def test_init(device: torch.device) -> None:
    """The table is drawn from N(0, 1), the padding vector is zero, a negative index counts from the end."""
    p = Embedding.init(pn.random.key(0, device=device), 1000, 20, -1, dtype=torch.float64)
    assert p.padding_idx == 999
    assert not p.weight[999].any()
    assert abs(p.weight[:999].mean()) < 0.02
    assert abs(p.weight[:999].std() - 1) < 0.02
    assert (p.num_embeddings, p.embedding_dim) == (1000, 20)
    p = Embedding.init(pn.random.key(0, device=device), 10**6, 10**4, 0, dtype=torch.bfloat16, device="meta")
    assert (p.weight.is_meta, p.weight.dtype, p.weight.shape) == (True, torch.bfloat16, (10**6, 10**4))


def test_repr(device: torch.device) -> None:
    """The sizes are printed, and the options that are not the defaults."""
    assert repr(Embedding(TABLE)) == "Embedding(7, 3)"
    assert repr(Embedding(TABLE, 1, max_norm=2.0)) == "Embedding(7, 3, padding_idx=1, max_norm=2.0)"


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 2}, {"max_norm": 1.0}, {"scale_grad_by_freq": True, "padding_idx": 2}]
)
def test_transformations(options: dict[str, Any], device: torch.device) -> None:
    """Embedding keeps the promises of the shared table with every option."""

    def make(seed: int) -> Embedding:
        return Embedding(TABLE.to(device) + seed, **options)

    check_transformations(make, embedding, some_indices(3, 2, 4, device=device))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"sparse": True},
            "Embedding.init: sparse=True is not supported, because torch's sparse gradients have no second derivatives "
            "and no batching rules. Leave it out: the gradient is then a dense tensor of equal value.",
        ),
        (
            {"padding_idx": 7},
            "Embedding.init: padding_idx must lie between -7 and 6 for num_embeddings=7, got 7.",
        ),
    ],
)
def test_errors(options: dict[str, Any], text: str) -> None:
    """Options that cannot work are refused with a text that says what to do."""
    with pytest.raises(pn.errors.ArgumentError) as caught:
        layers.Embedding.init(pn.random.key(0), 7, 3, **options)
    assert str(caught.value) == text
