"""EmbeddingBag: equal to torch.nn's with all its options, pure, and differentiable twice, which torch's is not."""

import copy
from typing import Any

import pytest
import torch
from _reference import filled, same, weights_like
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import vmap

import purenn as pn
from purenn.layers import Embedding as Table
from purenn.layers import EmbeddingBag, embedding, embedding_bag

TABLE = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# Bags of equal length, and two empty ones among five.
ROWS, PARTS, OFFSETS = (3, 4), (11,), (0, 3, 3, 5, 11)


def some_indices(*shape: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
    """Indices into the table, with repetitions."""
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def gradients(y: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a function that is curved and treats no element like another."""
    return torch.autograd.grad((torch.sin(y) * weights_like(y)).sum(), of, create_graph=True)


@given(
    mode=st.sampled_from(["sum", "mean", "max"]),
    padding_idx=st.sampled_from([None, 0, -1]),
    max_norm=st.sampled_from([None, 0.5, 1.5]),
    equal_length=st.booleans(),
    include_last_offset=st.booleans(),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 9),
)
def test_equals_torch(
    equal_length: bool, weighted: bool, dtype: torch.dtype, seed: int, device: torch.device, **options: Any
) -> None:
    """Values and gradients are torch's for all options but one; so are values with the module as container."""
    module = nn.EmbeddingBag(7, 3, **options, dtype=torch.float64, device=device)
    p = filled(EmbeddingBag.init(pn.random.key(0, device=device), 7, 3, **options), module)
    indices = some_indices(*(ROWS if equal_length else PARTS), seed=seed, device=device).to(dtype)
    offsets = OFFSETS if options["include_last_offset"] else OFFSETS[:-1]
    given = (indices, None if equal_length else torch.tensor(offsets, dtype=dtype, device=device))
    factors = [weights_like(indices.double()).requires_grad_()] if weighted and options["mode"] == "sum" else []
    ours, theirs = embedding_bag(p, *given, *factors), copy.deepcopy(module)(*given, *factors)
    same(ours, theirs)
    same(embedding_bag(module, *given, *factors), ours, tolerance=0)
    with torch.no_grad():
        same(embedding_bag(p, *given, *factors), ours)
    changed = copy.deepcopy(module)
    same(gradients(ours, [p.weight, *factors]), gradients(changed(*given, *factors), [changed.weight, *factors]))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("parts", [False, True])
def test_scale_by_frequency(parts: bool, mode: str, device: torch.device) -> None:
    """The gradient of each vector is divided by how often it is looked up; torch's kernel takes other counts."""
    indices = some_indices(*(PARTS if parts else ROWS), device=device)
    offsets = torch.tensor(OFFSETS[:-1], device=device) if parts else None
    table = TABLE.to(device).clone().requires_grad_()
    plain, scaled = (EmbeddingBag(table, mode=mode, scale_grad_by_freq=scale) for scale in (False, True))
    same(scaled(indices, offsets), plain(indices, offsets), tolerance=0)
    expected, got = (gradients(p(indices, offsets), [table])[0] for p in (plain, scaled))
    same(got, expected / torch.bincount(indices.flatten(), minlength=7).clamp(min=1).unsqueeze(-1))


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("form", ["rows", "parts", "weighted rows", "weighted parts"])
def test_second_derivatives(form: str, mode: str, padding_idx: int | None, device: torch.device) -> None:
    """With torch's kernel in the forward pass, derivatives of all orders are those of vectors that are put together."""
    weighted = form.startswith("weighted")
    if weighted and mode != "sum":
        return
    table = torch.randn(7, 40000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    table.requires_grad_()
    p = EmbeddingBag(table, mode=mode, padding_idx=padding_idx)
    indices = some_indices(2, 3, device=device)
    indices[1] = 2
    factors = [weights_like(indices.double()).requires_grad_()] if weighted else []
    vectors = embedding(Table(table), indices) * (factors[0].unsqueeze(-1) if factors else 1)
    kept = indices != (-1 if padding_idx is None else padding_idx)
    if mode == "max":
        expected = torch.where(kept.any(-1, keepdim=True), vectors.where(kept.unsqueeze(-1), -torch.inf).amax(1), 0)
    else:
        expected = vectors.where(kept.unsqueeze(-1), 0).sum(1)
        if mode == "mean":
            expected = expected / kept.sum(-1, keepdim=True).clamp(min=1)
    if form.endswith("rows"):
        y = embedding_bag(p, indices, None, *factors)
    else:
        starts = torch.tensor([0, 3], device=device)
        y = embedding_bag(p, indices.flatten(), starts, *(factor.flatten() for factor in factors))
    same(y, expected)
    first = [gradients(value, [table, *factors]) for value in (y, expected)]
    same(first[0], first[1])
    second = [torch.autograd.grad(sum(gradients(g, [table])[0].sum() for g in one), table)[0] for one in first]
    same(second[0], second[1])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0,)])
def test_empty(shape: tuple[int, ...], mode: str, device: torch.device) -> None:
    """Bags without indices are zeros; there may be no bags."""
    p, indices = EmbeddingBag(TABLE.to(device), mode=mode), torch.zeros(shape, dtype=torch.long, device=device)
    offsets = torch.zeros(2, dtype=torch.long, device=device) if len(shape) == 1 else None
    expected = torch.zeros(2 if offsets is not None else shape[0], 3, dtype=torch.float64, device=device)
    same(embedding_bag(p, indices, offsets), expected)
    same(vmap(lambda table: embedding_bag(pn.replace(p, weight=table), indices, offsets))(p.weight[None])[0], expected)


def test_table_is_left_alone(device: torch.device) -> None:
    """The vectors that are put together are short enough; the table keeps the long ones."""
    p = EmbeddingBag(TABLE.to(device), max_norm=0.7)
    indices = torch.arange(7, device=device).unsqueeze(-1)
    check_purity(embedding_bag, p, indices)
    assert embedding_bag(p, indices).norm(dim=-1).max() <= 0.7
    assert p.weight.norm(dim=-1).max() > 0.7


OPTIONS: list[dict[str, Any]] = [
    {},
    {"mode": "sum", "padding_idx": 2},
    {"mode": "max"},
    {"mode": "max", "padding_idx": 2},
    {"mode": "mean", "max_norm": 1.0, "padding_idx": 2},
    {"mode": "sum", "scale_grad_by_freq": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("parts", [False, True])
def test_transformations(parts: bool, options: dict[str, Any], device: torch.device) -> None:
    """It keeps the promises of the shared table with every option, for both forms of bags."""

    def make(seed: int) -> EmbeddingBag:
        return EmbeddingBag(TABLE.to(device) + 0.1 * seed, **options)

    def apply(p: EmbeddingBag, indices: Tensor) -> Tensor:
        offsets = torch.tensor([0, 1, 1, 4], device=device) if parts else None
        return embedding_bag(p, indices, offsets)

    indices = some_indices(3, 6, device=device) if parts else some_indices(3, 2, 4, device=device)
    check_transformations(make, apply, indices)


@pytest.mark.parametrize("parts", [False, True])
def test_weights_under_transformations(parts: bool, device: torch.device) -> None:
    """Factors of the vectors are differentiated, and batched, like the table."""
    indices = some_indices(*((6,) if parts else (2, 3)), device=device)
    offsets = torch.tensor([0, 2], device=device) if parts else None

    def make(seed: int) -> tuple[Any, ...]:
        return EmbeddingBag(TABLE.to(device) + seed, mode="sum"), indices, offsets

    factors = torch.linspace(-1, 1, 12, dtype=torch.float64, device=device).reshape(2, *indices.shape)
    check_transformations(make, lambda p, factors: embedding_bag(*p, factors), factors)


def test_offsets_under_vmap(device: torch.device) -> None:
    """Every example may have offsets of its own."""
    offsets = torch.tensor([[0, 2, 2], [0, 1, 5]], device=device)
    indices = some_indices(2, 6, device=device)
    for mode in ("sum", "mean", "max"):
        p = EmbeddingBag(TABLE.to(device), mode=mode)
        got = vmap(lambda i, o, p=p: embedding_bag(p, i, o))(indices, offsets)
        same(got, torch.stack([embedding_bag(p, i, o) for i, o in zip(indices, offsets, strict=True)]))


def test_dual_numbers(device: torch.device) -> None:
    """Forward mode without torch.func gives tangents too, which torch's kernel has not."""
    indices, tangent = some_indices(3, 4, device=device), TABLE.flip(0).to(device)
    with forward_ad.dual_level():
        table = forward_ad.make_dual(TABLE.to(device), tangent)
        y = embedding_bag(EmbeddingBag(table, mode="sum"), indices)
        same(forward_ad.unpack_dual(y).tangent, tangent[indices].sum(1))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_half_precision(mode: str, device: torch.device) -> None:
    """In bfloat16 results are torch's, up to rounding under vmap."""
    table, indices = TABLE.to(device).bfloat16(), some_indices(3, 4, device=device)
    expected = nn.EmbeddingBag.from_pretrained(table, mode=mode)(indices)
    p = EmbeddingBag(table, mode=mode)
    assert torch.equal(embedding_bag(p, indices), expected)
    same(vmap(p)(indices.unsqueeze(0))[0].float(), expected.float(), tolerance=0.03)


def test_init(device: torch.device) -> None:
    """The table is drawn from N(0, 1), the padding vector is zero, a negative index counts from the end."""
    p = EmbeddingBag.init(pn.random.key(0, device=device), 1000, 20, padding_idx=-1, dtype=torch.float64)
    assert p.padding_idx == 999
    assert not p.weight[999].any()
    assert abs(p.weight[:999].mean()) < 0.02
    assert (p.num_embeddings, p.embedding_dim) == (1000, 20)
    p = EmbeddingBag.init(pn.random.key(0, device=device), 10**6, 10**4, dtype=torch.bfloat16, device="meta")
    assert (p.weight.is_meta, p.weight.dtype, p.weight.shape) == (True, torch.bfloat16, (10**6, 10**4))
    assert repr(EmbeddingBag(TABLE, mode="sum", padding_idx=1)) == "EmbeddingBag(7, 3, padding_idx=1, mode='sum')"


def bag(**options: Any) -> EmbeddingBag:
    """A bag over the table."""
    return EmbeddingBag(TABLE, **options)


ZEROS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: EmbeddingBag.init(pn.random.key(0), 7, 3, sparse=True),
            pn.errors.ArgumentError,
            "EmbeddingBag.init: sparse=True is not supported, because torch's sparse gradients have no second "
            "derivatives and no batching rules. Leave it out: the gradient is then a dense tensor of equal value.",
        ),
        (
            lambda: EmbeddingBag.init(pn.random.key(0), 7, 3, padding_idx=7),
            pn.errors.ArgumentError,
            "EmbeddingBag.init: padding_idx must lie between -7 and 6 for num_embeddings=7, got 7.",
        ),
        (
            lambda: bag(mode="median"),
            pn.errors.ArgumentError,
            "EmbeddingBag: mode must be one of sum, mean, max, got 'median'.",
        ),
        (
            lambda: bag(mode="max", scale_grad_by_freq=True),
            pn.errors.ArgumentError,
            "EmbeddingBag: scale_grad_by_freq is an option of the modes sum and mean only.",
        ),
        (
            lambda: bag()(ZEROS),
            pn.errors.ShapeError,
            "embedding_bag: indices must be [bags, length] without offsets, or [total] with offsets of shape [bags], "
            "got indices of shape [4] and offsets: none.",
        ),
        (
            lambda: bag()(ZEROS.view(2, 2), ZEROS),
            pn.errors.ShapeError,
            "embedding_bag: indices must be [bags, length] without offsets, or [total] with offsets of shape [bags], "
            "got indices of shape [2, 2] and offsets: shape [4].",
        ),
        (
            lambda: bag(include_last_offset=True)(ZEROS, ZEROS[:1]),
            pn.errors.ShapeError,
            "embedding_bag: offsets of shape [1] with include_last_offset=True make no bag for the 4 indices. Give "
            "offsets that begin with 0.",
        ),
        (
            lambda: bag()(ZEROS, torch.tensor([1, 2])),
            pn.errors.ArgumentError,
            "embedding_bag: offsets must rise from 0 to at most the number of indices, 4, got offsets from 1 to 2.",
        ),
        (
            lambda: bag(max_norm=1.0)(ZEROS, torch.tensor([0, 7])),
            pn.errors.ArgumentError,
            "embedding_bag: offsets must rise from 0 to at most the number of indices, 4, got offsets from 0 to 7.",
        ),
        (
            lambda: bag()(ZEROS.view(2, 2), None, torch.ones(2, 2)),
            pn.errors.ArgumentError,
            "embedding_bag: per_sample_weights go with mode='sum' only, got mode='mean'. Divide the weighted sum by "
            "what the mean shall be over.",
        ),
        (
            lambda: bag(mode="sum")(ZEROS.view(2, 2), None, torch.ones(2, 2)),
            pn.errors.ArgumentError,
            "embedding_bag: per_sample_weights must have the dtype of the table, torch.float64, got torch.float32.",
        ),
        (
            lambda: bag(mode="sum")(ZEROS.view(2, 2), None, torch.ones(4, dtype=torch.float64)),
            pn.errors.ShapeError,
            "embedding_bag: per_sample_weights must have the shape of indices, [2, 2], got [4].",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
