"""Padding: equal to torch.nn's in every dimension and for sizes of both signs, under all transformations."""

from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purenn as pn
from purenn import layers

DIMENSIONS = pytest.mark.parametrize("dimensions", [1, 2, 3])
FAMILIES = {
    "ZeroPad": "zero_pad",
    "ConstantPad": "constant_pad",
    "ReflectionPad": "reflection_pad",
    "ReplicationPad": "replication_pad",
    "CircularPad": "circular_pad",
}


def find(family: str, dimensions: int) -> tuple[Any, Any, Any]:
    """The container, the function and torch's module of a family such as ZeroPad."""
    name = f"{family}{dimensions}d"
    return getattr(layers, name), getattr(layers, f"{FAMILIES[family]}{dimensions}d"), getattr(nn, name)


@pytest.mark.parametrize("family", FAMILIES)
@DIMENSIONS
@given(data=st.data())
def test_equals_torch(family: str, dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Values and derivatives are torch's, batched or not, for one size and for one of each side, also negative."""
    cls, function, module = find(family, dimensions)
    sides = st.tuples(*[st.integers(-1, 2)] * (2 * dimensions))
    padding = data.draw(st.one_of(st.integers(-1, 2), sides))
    value = (2.5,) if family == "ConstantPad" else ()
    batch = data.draw(st.sampled_from([(), (1,), (2,)]))
    x = numbers(*batch, 2, *(3, 4, 5)[:dimensions], seed=data.draw(st.integers(0, 9)), device=device)
    check_equals_module(cls(padding, *value), function, module(padding, *value), x)


@DIMENSIONS
def test_constants_around_any_number_of_dimensions(dimensions: int, device: torch.device) -> None:
    """Constants may be added to inputs without channels, to those with more dimensions, and to whole numbers."""
    for family, value in (("ZeroPad", ()), ("ConstantPad", (3,))):
        cls, function, module = find(family, dimensions)
        for x in (torch.ones([2] * dimensions, device=device), torch.ones([2] * 6, dtype=torch.long, device=device)):
            same(function(cls(1, *value), x), module(1, *value)(x))


@pytest.mark.parametrize("family", FAMILIES)
@DIMENSIONS
@pytest.mark.parametrize("batch", [(), (2,)])
def test_transformations(family: str, dimensions: int, batch: tuple[int, ...], device: torch.device) -> None:
    """Every padding keeps the promises of the shared table, for one input and for a batch."""
    cls, function, _ = find(family, dimensions)
    value = (2.5,) if family == "ConstantPad" else ()
    p = cls((2, 1, -1, 1, 1, 0)[: 2 * dimensions], *value)
    inputs = numbers(2, *batch, 2, *[3] * dimensions, device=device)
    check_transformations(lambda seed: p, function, inputs, compile=batch == (2,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family: str, dtype: torch.dtype, device: torch.device) -> None:
    """Padding does not round."""
    cls, function, _ = find(family, 2)
    p = cls(1, 2.5) if family == "ConstantPad" else cls(1)
    x = numbers(2, 3, 3, device=device).to(dtype)
    assert torch.equal(function(p, x), function(p, x.float()).to(dtype))


def test_options_and_repr() -> None:
    """One number becomes the size of all sides; containers are written as torch writes modules."""
    assert layers.ReflectionPad2d(1).padding == (1, 1, 1, 1)
    assert pn.tree.leaves(layers.ConstantPad2d(1, 2.5)) == []
    for ours, theirs in (
        (layers.ZeroPad2d(1), nn.ZeroPad2d(1)),
        (layers.ConstantPad1d((1, 2), 2.5), nn.ConstantPad1d((1, 2), 2.5)),
        (layers.CircularPad3d(2), nn.CircularPad3d(2)),
    ):
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: layers.ZeroPad2d((1, 2)),
            pn.errors.ArgumentError,
            "ZeroPad2d: padding must be one whole number, or 4 (two for each dimension, the last dimension first), got "
            "(1, 2).",
        ),
        (
            lambda: layers.ZeroPad3d(1)(torch.zeros(4, 4)),
            pn.errors.ShapeError,
            "zero_pad3d: x must have at least 3 dimensions, got shape [4, 4].",
        ),
        (
            lambda: layers.ConstantPad2d((1, 1, -3, -2), 1.0)(torch.zeros(4, 5)),
            pn.errors.ShapeError,
            "constant_pad2d: (-3, -2) does not fit a dimension of size 4 in x of shape [4, 5]: no more can be cut off "
            "than there is.",
        ),
        (
            lambda: layers.ReflectionPad1d(1)(torch.zeros(1, 2, 4, 5)),
            pn.errors.ShapeError,
            "reflection_pad1d: x must be [batch, channels, length] or [channels, length], got shape [1, 2, 4, 5].",
        ),
        (
            lambda: layers.ReflectionPad2d((0, 4, 1, 1))(torch.zeros(2, 4, 4)),
            pn.errors.ShapeError,
            "reflection_pad2d: (0, 4) does not fit a dimension of size 4 in x of shape [2, 4, 4]: each must be smaller "
            "than the dimension that it extends.",
        ),
        (
            lambda: layers.ReplicationPad2d(1)(torch.zeros(2, 0, 4)),
            pn.errors.ShapeError,
            "replication_pad2d: (1, 1) does not fit a dimension of size 0 in x of shape [2, 0, 4]: an empty dimension "
            "has no element to repeat.",
        ),
        (
            lambda: torch.func.vmap(layers.CircularPad1d((5, 0)))(torch.zeros(3, 2, 4)),
            pn.errors.ShapeError,
            "circular_pad1d: (5, 0) does not fit a dimension of size 4 in x of shape [2, 4]: each must be at most the "
            "size of the dimension that it extends.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_other_errors_are_torchs(device: torch.device) -> None:
    """What has nothing to do with sizes is not explained by them."""
    with pytest.raises(RuntimeError, match="not implemented for"):
        layers.ReflectionPad1d(1)(torch.zeros(2, 4, dtype=torch.bool, device=device))
