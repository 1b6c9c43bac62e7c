"""Unpooling and fractional pooling: equal to torch.nn's, and batchable, which torch's own are not."""

from typing import Any

import pytest
import torch
from _pools import DIMENSIONS, draw_input, find
from _reference import check_equals_module, numbers, per_dimension, same
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import purenn as pn
from purenn import layers


@DIMENSIONS
@given(data=st.data())
def test_max_unpool_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Each maximum returns to its place, for every size that pooling maps to the input's, with torch's derivatives."""
    options = {
        "kernel_size": data.draw(st.integers(2, 3)),
        "stride": data.draw(st.sampled_from([None, 2, 3])),
        "padding": data.draw(st.integers(0, 1)),
    }
    x = draw_input(data, dimensions, device)
    cls, function, module = find("MaxUnpool", dimensions)
    pool, pooling, _ = find("MaxPool", dimensions)
    maxima, indices = pooling(pool(**options, return_indices=True), x)
    # torch takes the whole size of a batch only.
    size = x.shape if x.ndim == dimensions + 2 and data.draw(st.booleans()) else x.shape[-dimensions:]
    check_equals_module(cls(**options), function, module(**options), maxima, indices, output_size=size)
    y = function(cls(**options), maxima, indices, output_size=size)
    assert y.shape == x.shape
    assert torch.equal(y[y != 0], x[y != 0])


@DIMENSIONS
def test_max_unpool_to_the_usual_size(dimensions: int, device: torch.device) -> None:
    """Without an output size the result is as large as the windows reach."""
    cls, function, module = find("MaxUnpool", dimensions)
    pool, pooling, _ = find("MaxPool", dimensions)
    x = numbers(2, 3, *[8] * dimensions, device=device)
    maxima, indices = pooling(pool(2, return_indices=True), x)
    check_equals_module(cls(2), function, module(2), maxima, indices)
    assert function(cls(2), maxima, indices).shape == x.shape


FRACTIONAL = pytest.mark.parametrize("dimensions", [2, 3])


@FRACTIONAL
@given(data=st.data())
def test_fractional_max_pool_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """For the same samples maxima, places and derivatives are torch's, for every size or ratio."""
    cls, function, module = find("FractionalMaxPool", dimensions)
    x = draw_input(data, dimensions, device)
    batch = x.shape[0] if x.ndim == dimensions + 2 else 1
    samples = torch.rand(batch, 2, dimensions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_ratio = data.draw(st.booleans())
    options = {
        "kernel_size": per_dimension(data, st.integers(1, 2), dimensions),
        "output_size": None if by_ratio else per_dimension(data, st.integers(1, 4), dimensions),
        "output_ratio": per_dimension(data, st.sampled_from([0.5, 0.7]), dimensions) if by_ratio else None,
        "return_indices": data.draw(st.booleans()),
    }
    p = cls(**options, random_samples=samples.to(device))
    check_equals_module(p, function, module(**options, _random_samples=samples.to(device)), x)


@FRACTIONAL
def test_fractional_max_pool_draws(dimensions: int, device: torch.device) -> None:
    """A key draws windows for each example and channel; without one they are the same in every call."""
    cls, function, _ = find("FractionalMaxPool", dimensions)
    p = cls(2, 4, return_indices=True)
    x = numbers(1, 1, *[9] * dimensions, device=device).expand(20, 3, *[9] * dimensions)
    key = pn.random.key(0, device=device)
    check_purity(function, p, x)
    check_purity(lambda p, x, key: function(p, x, key=key), p, x, key)
    y, indices = function(p, x, key=key)
    assert torch.equal(y.flatten(2), x.flatten(2).gather(-1, indices.flatten(2)))
    assert len(indices.flatten(0, 1).unique(dim=0)) > 5
    assert not torch.equal(y, function(p, x, key=pn.random.key(1, device=device))[0])
    assert len(function(p, x)[0].flatten(0, 1).unique(dim=0)) == 1
    keys = pn.random.split(key, 3)
    one = cls(2, 4)
    got = torch.func.vmap(lambda x, key: function(one, x, key=key))(x[:3], keys)
    assert torch.equal(got, torch.stack([function(one, x[0], key=k) for k in keys]))


def test_fractional_max_pool_in_half_precision(device: torch.device) -> None:
    """Windows are placed as in single precision, so that half-precision inputs are pooled at the same places."""
    p = layers.FractionalMaxPool2d(2, 20, return_indices=True)
    x = numbers(1, 1, 40, 40, device=device).half()
    key = pn.random.key(0, device=device)
    got = layers.fractional_max_pool2d(p, x, key=key)
    expected = layers.fractional_max_pool2d(p, x.float(), key=key)
    assert got[0].dtype == torch.float16
    same(got[1], expected[1])


WITH_INDICES = {"MaxPool": (2,), "AdaptiveMaxPool": (2,), "FractionalMaxPool": (2, 2)}


@pytest.mark.parametrize("family", WITH_INDICES)
@FRACTIONAL
def test_indices_under_vmap(family: str, dimensions: int, device: torch.device) -> None:
    """The places of the maxima are those of a loop, and unpooling with them is batched too."""
    cls, function, _ = find(family, dimensions)
    p = cls(*WITH_INDICES[family], return_indices=True)
    x = numbers(3, 2, *[4] * dimensions, device=device)
    y, indices = torch.func.vmap(lambda x: function(p, x))(x)
    for i in range(3):
        same((y[i], indices[i]), function(p, x[i]))
    unpool, unpooling, _ = find("MaxUnpool", dimensions)
    got = torch.func.vmap(lambda y, i: unpooling(unpool(2), y, i))(y, indices)
    same(got, torch.stack([unpooling(unpool(2), y[i], indices[i]) for i in range(3)]))


@DIMENSIONS
@pytest.mark.parametrize("batch", [(), (2,)])
def test_unpooling_keeps_the_promises(dimensions: int, batch: tuple[int, ...], device: torch.device) -> None:
    """Unpooling keeps the promises of the shared table, by itself and after pooling."""
    cls, function, _ = find("MaxUnpool", dimensions)
    pool, pooling, _ = find("MaxPool", dimensions)
    inputs = numbers(2, *batch, 2, *[4] * dimensions, device=device)

    def apply(p: Any, x: Tensor) -> Tensor:
        maxima, indices = pooling(pool(2, return_indices=True), x)
        return function(p, maxima, indices)

    check_transformations(lambda seed: cls(2), apply, inputs, compile=batch == (2,))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: layers.MaxUnpool1d(2)(torch.zeros(1, 4), torch.zeros(1, 3, dtype=torch.long)),
            pn.errors.ShapeError,
            "max_unpool1d: indices must have the shape of x, [1, 4], got [1, 3].",
        ),
        (
            lambda: layers.MaxUnpool1d(2)(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.long), output_size=(10,)),
            pn.errors.ShapeError,
            "max_unpool1d: output_size must lie between (7,) and (9,) for x of shape [1, 4], got (10,).",
        ),
        (
            lambda: layers.FractionalMaxPool2d(2)(torch.zeros(1, 4, 4)),
            pn.errors.ArgumentError,
            "fractional_max_pool2d: exactly one of output_size and output_ratio must be given, got output_size=None "
            "and output_ratio=None.",
        ),
        (
            lambda: layers.FractionalMaxPool2d(2, output_ratio=1.5)(torch.zeros(1, 4, 4)),
            pn.errors.ArgumentError,
            "fractional_max_pool2d: output_ratio must be between 0 and 1, got 1.5.",
        ),
        (
            lambda: layers.FractionalMaxPool2d(3, 3)(torch.zeros(1, 4, 4)),
            pn.errors.ShapeError,
            "fractional_max_pool2d: windows of size (3, 3) do not fit (3, 3) times into an input of size (4, 4): in "
            "each dimension it must be at least the output's size plus the window's, minus 1.",
        ),
        (
            lambda: layers.FractionalMaxPool2d(2, 2, random_samples=torch.rand(1, 3, 2))(torch.zeros(1, 2, 4, 4)),
            pn.errors.ShapeError,
            "fractional_max_pool2d: random_samples must have shape [1, 2, 2] for x of shape [1, 2, 4, 4], got [1, 3, "
            "2].",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
