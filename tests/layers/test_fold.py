"""Fold and Unfold: equal to torch.nn's for every option, and each other's transpose."""

from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, per_dimension, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purenn as pn
from purenn.layers import Fold, Unfold, fold, unfold


@given(data=st.data())
def test_equal_torch(data: st.DataObject, device: torch.device) -> None:
    """Columns and sums are torch's for every combination of options, batched or not."""
    options = {
        "kernel_size": per_dimension(data, st.integers(1, 3), 2),
        "dilation": per_dimension(data, st.integers(1, 2), 2),
        "padding": per_dimension(data, st.integers(0, 2), 2),
        "stride": per_dimension(data, st.integers(1, 3), 2),
    }
    batch = data.draw(st.sampled_from([(), (1,), (2,)]))
    x = numbers(*batch, 2, 6, 5, seed=data.draw(st.integers(0, 9)), device=device)
    check_equals_module(Unfold(**options), unfold, nn.Unfold(**options), x)
    columns = numbers(*unfold(Unfold(**options), x).shape, seed=1, device=device)
    check_equals_module(Fold((6, 5), **options), fold, nn.Fold((6, 5), **options), columns)
    # <unfold(x), c> = <x, fold(c)>
    y = fold(Fold((6, 5), **options), columns)
    same((unfold(Unfold(**options), x) * columns).sum(), (x * y).sum())


@pytest.mark.parametrize("batch", [(), (2,)])
def test_transformations(batch: tuple[int, ...], device: torch.device) -> None:
    """Both keep the promises of the shared table, for one input and for a batch."""
    p, x = Unfold(2, padding=1), numbers(2, *batch, 2, 2, 3, device=device)
    check_transformations(lambda seed: p, unfold, x)
    q, columns = Fold((3, 4), 2), numbers(2, *batch, 8, 6, device=device)
    check_transformations(lambda seed: q, fold, columns)


def test_half_precision(device: torch.device) -> None:
    """In bfloat16 results are torch's."""
    x, columns = numbers(2, 4, 4, device=device).bfloat16(), numbers(8, 9, device=device).bfloat16()
    assert torch.equal(Unfold(2)(x), nn.Unfold(2)(x))
    assert torch.equal(Fold(4, 2)(columns), nn.Fold(4, 2)(columns))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: Unfold(2)(torch.zeros(4, 4)),
            pn.errors.ShapeError,
            "unfold: x must be [batch, channels, height, width] or [channels, height, width], got shape [4, 4].",
        ),
        (
            lambda: Unfold(3, dilation=2)(torch.zeros(1, 4, 4)),
            pn.errors.ShapeError,
            "unfold: no window fits into x of shape [1, 4, 4]: kernel_size=3, dilation=2, padding=0.",
        ),
        (
            lambda: Fold(4, 2)(torch.zeros(8, 8)),
            pn.errors.ShapeError,
            "fold: x must be [*batch, channels * 4, 9] (3 x 3 windows of 4 elements), got shape [8, 8]. Check "
            "output_size=4 and the options: they must be those of the Unfold.",
        ),
        (
            lambda: Fold(4, (2, 2, 2))(torch.zeros(8, 8)),
            pn.errors.ArgumentError,
            "fold: kernel_size must be one number, or 2 (one for each spatial dimension), got (2, 2, 2).",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
