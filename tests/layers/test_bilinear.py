"""Bilinear: equal to torch.nn's, and batchable, which torch's own is not."""

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import purenn as pn
from purenn.layers import Bilinear, bilinear


@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 3),
    bias=st.booleans(),
    batch=st.sampled_from([(), (0,), (3,), (2, 3)]),
)
def test_bilinear_equals_torch(
    sizes: tuple[int, int, int], bias: bool, batch: tuple[int, ...], device: torch.device
) -> None:
    """Values and derivatives are torch's for all sizes and any number of batch dimensions."""
    module = nn.Bilinear(*sizes, bias=bias, dtype=torch.float64, device=device)
    p = Bilinear.init(pn.random.key(0, device=device), *sizes, bias=bias)
    x1, x2 = numbers(*batch, sizes[0], device=device), numbers(*batch, sizes[1], seed=1, device=device)
    check_equals_module(p, bilinear, module, x1, x2)
    assert repr(p) == repr(module)


@pytest.mark.parametrize("out_features", [2, 5])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_transformations(batch: tuple[int, ...], out_features: int, device: torch.device) -> None:
    """It keeps the promises of the shared table, in both orders of computation."""

    def make(seed: int) -> Bilinear:
        return Bilinear.init(pn.random.key(seed, device=device), 4, 3, out_features, dtype=torch.float64)

    def apply(p: Bilinear, x: Tensor) -> Tensor:
        return bilinear(p, x[..., :4], x[..., 4:])

    check_transformations(make, apply, numbers(2, *batch, 7, device=device))


def test_init(device: torch.device) -> None:
    """Weight and bias are uniform within 1 / sqrt(in1_features); on meta nothing is drawn."""
    p = Bilinear.init(pn.random.key(0, device=device), 16, 5, 200, dtype=torch.float64)
    for leaf in pn.tree.leaves(p):
        assert 0.24 < leaf.abs().max() <= 0.25
    assert not torch.equal(p.weight.flatten()[:200], p.bias)
    assert (p.in1_features, p.in2_features, p.out_features) == (16, 5, 200)
    p = Bilinear.init(pn.random.key(0, device=device), 3, 4, 5, dtype=torch.bfloat16, device="meta")
    assert [(leaf.is_meta, leaf.dtype, tuple(leaf.shape)) for leaf in pn.tree.leaves(p)] == [
        (True, torch.bfloat16, (5, 3, 4)),
        (True, torch.bfloat16, (5,)),
    ]


@pytest.mark.parametrize("out_features", [2, 5])
def test_half_precision(out_features: int, device: torch.device) -> None:
    """In bfloat16 the result is that of single precision up to rounding."""
    p = Bilinear.init(pn.random.key(0, device=device), 4, 3, out_features)
    x1, x2 = numbers(6, 4, device=device).bfloat16(), numbers(6, 3, seed=1, device=device).bfloat16()
    got = bilinear(pn.tree.to(p, torch.bfloat16), x1, x2)
    assert got.dtype == torch.bfloat16
    same(got.float(), bilinear(p, x1.float(), x2.float()), tolerance=0.05)


@pytest.mark.parametrize(
    ("shape1", "shape2"), [((2, 4), (2, 4)), ((2, 3), (2, 3)), ((1, 4), (2, 3)), ((4,), (2, 3)), ((), (3,))]
)
def test_errors(shape1: tuple[int, ...], shape2: tuple[int, ...]) -> None:
    """Inputs that do not fit are refused, also those that could be broadcast."""
    p = Bilinear.init(pn.random.key(0), 4, 3, 2)
    with pytest.raises(pn.errors.ShapeError) as caught:
        bilinear(p, torch.zeros(shape1), torch.zeros(shape2))
    assert str(caught.value) == (
        f"bilinear: x1 must be [*batch, 4] and x2 [*batch, 3] with the same batch dimensions, got shapes "
        f"{list(shape1)} and {list(shape2)}."
    )
