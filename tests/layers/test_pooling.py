"""Pooling and unpooling: equal to torch.nn's for every option, and batchable without a fallback."""

from typing import Any

import pytest
import torch
from _pools import DIMENSIONS, draw_input, find
from _reference import check_equals_module, numbers, per_dimension, same, weights_like
from _transformations import check_transformations
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import purenn as pn
from purenn import layers


def check(family: str, dimensions: int, x: Tensor, **options: Any) -> None:
    """Compare one layer with torch's."""
    cls, function, module = find(family, dimensions)
    assert pn.tree.leaves(cls(**options)) == []
    check_equals_module(cls(**options), function, module(**options), x)


@DIMENSIONS
@given(data=st.data())
def test_max_pool_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Maxima, their places, and derivatives are torch's for every combination of options."""
    check(
        "MaxPool",
        dimensions,
        draw_input(data, dimensions, device),
        kernel_size=per_dimension(data, st.integers(2, 3), dimensions),
        stride=per_dimension(data, st.integers(1, 3), dimensions) if data.draw(st.booleans()) else None,
        padding=per_dimension(data, st.integers(0, 1), dimensions),
        dilation=per_dimension(data, st.integers(1, 2), dimensions),
        return_indices=data.draw(st.booleans()),
        ceil_mode=data.draw(st.booleans()),
    )


LARGE = {2: (3, 16, 28, 28), 3: (2, 16, 8, 12, 12)}
LARGE_ONLY = pytest.mark.parametrize("dimensions", [*LARGE])


@LARGE_ONLY
@settings(max_examples=8)
@given(data=st.data())
def test_max_pool_of_a_large_batch_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Large batches, for which the CPU has a faster way, have torch's maxima, places and derivatives."""
    check(
        "MaxPool",
        dimensions,
        numbers(*LARGE[dimensions], device=device),
        kernel_size=per_dimension(data, st.integers(2, 3), dimensions),
        stride=per_dimension(data, st.integers(1, 3), dimensions) if data.draw(st.booleans()) else None,
        padding=per_dimension(data, st.integers(0, 1), dimensions),
        dilation=data.draw(st.sampled_from([1, (1,) * dimensions, 2])),
        return_indices=data.draw(st.booleans()),
        ceil_mode=data.draw(st.booleans()),
    )


@LARGE_ONLY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_max_pool_of_a_large_batch_with_ties(dimensions: int, dtype: torch.dtype, device: torch.device) -> None:
    """Among equal elements, infinities and NaN the same one is taken as in torch, and gets the gradient."""
    x = (numbers(*LARGE[dimensions], device=device) * 2).round().to(dtype)
    x = x.where(x.abs() < 2, torch.where(x > 4, torch.nan, -torch.inf)).requires_grad_()
    cls, _, module = find("MaxPool", dimensions)
    found, expected = (call(x) for call in (cls(3, 2, 1, 1, True), module(3, 2, 1, 1, True)))
    same(found, expected, tolerance=0)
    assert found[0].stride() == expected[0].stride()
    gradients = [torch.autograd.grad(y, x, weights_like(y))[0] for y, _ in (found, expected)]
    same(*gradients, tolerance=1e-9 if dtype == torch.float64 else 0)


@LARGE_ONLY
def test_max_pool_of_a_large_batch_under_transformations(dimensions: int, device: torch.device) -> None:
    """Large batches keep the promises of the shared table: batched and traced they are as they are by themselves."""
    cls, function, _ = find("MaxPool", dimensions)
    inputs = numbers(2, *LARGE[dimensions], device=device)
    check_transformations(lambda seed: cls(2), function, inputs)


@pytest.mark.parametrize("layout", ["row-major", "channels last", "a slice", "one input", "a parameter"])
def test_max_pool_of_a_large_batch_laid_out_otherwise(layout: str, device: torch.device) -> None:
    """A batch too large for one go, any layout, one input, and a parameter are pooled as in torch, into its layout."""
    x = numbers(18, 32, 32, 32, device=device)
    x = {
        "row-major": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "a slice": x[..., 1:],
        "one input": x.flatten(0, 1),
        "a parameter": nn.Parameter(x),
    }[layout]
    found, expected = layers.MaxPool2d(2)(x), nn.MaxPool2d(2)(x)
    same(found, expected, tolerance=0)
    assert found.stride() == expected.stride()
    if layout == "one input":
        x = x.reshape(36, 16, 32, 32)
        same(layers.MaxPool3d(2)(x), nn.MaxPool3d(2)(x), tolerance=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore:.*torch.jit.trace:FutureWarning")
def test_max_pool_of_a_large_batch_traced_by_torch_jit(device: torch.device) -> None:
    """What `torch.jit.trace` makes of pooling a large batch holds for a batch of any other size."""
    traced = torch.jit.trace(lambda x: layers.max_pool2d(layers.MaxPool2d(2), x), numbers(4, 16, 32, 32, device=device))
    x = numbers(40, 16, 32, 32, device=device)
    same(traced(x), nn.MaxPool2d(2)(x), tolerance=0)


@DIMENSIONS
@given(data=st.data())
def test_avg_pool_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Means and derivatives are torch's for every combination of options."""
    divisor = {} if dimensions == 1 else {"divisor_override": data.draw(st.sampled_from([None, 5]))}
    check(
        "AvgPool",
        dimensions,
        draw_input(data, dimensions, device),
        kernel_size=per_dimension(data, st.integers(2, 3), dimensions),
        stride=per_dimension(data, st.integers(1, 3), dimensions) if data.draw(st.booleans()) else None,
        padding=per_dimension(data, st.integers(0, 1), dimensions),
        ceil_mode=data.draw(st.booleans()),
        count_include_pad=data.draw(st.booleans()),
        **divisor,
    )


@DIMENSIONS
@given(data=st.data())
def test_lp_pool_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Power averages and derivatives are torch's for every combination of options."""
    check(
        "LPPool",
        dimensions,
        draw_input(data, dimensions, device).abs(),
        norm_type=data.draw(st.sampled_from([1, 2, 3, 1.5])),
        kernel_size=2 if dimensions == 1 else per_dimension(data, st.integers(2, 3), dimensions),
        stride=data.draw(st.sampled_from([None, 1, 2])),
        ceil_mode=data.draw(st.booleans()),
    )


def test_lp_pool_of_zeros(device: torch.device) -> None:
    """A window of zeros has the gradient zero, not NaN."""
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, device=device)
    gradient = torch.func.grad(lambda x: layers.lp_pool2d(layers.LPPool2d(2, 2), x).sum())(x)
    assert not gradient.any()


@DIMENSIONS
@given(data=st.data())
def test_adaptive_max_pool_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Maxima, their places, and derivatives are torch's for every size of the result."""
    check(
        "AdaptiveMaxPool",
        dimensions,
        draw_input(data, dimensions, device),
        output_size=draw_output_size(data, dimensions),
        return_indices=data.draw(st.booleans()),
    )


@DIMENSIONS
@given(data=st.data())
def test_adaptive_avg_pool_equals_torch(dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Means and derivatives are torch's for every size of the result."""
    output_size = draw_output_size(data, dimensions)
    check("AdaptiveAvgPool", dimensions, draw_input(data, dimensions, device), output_size=output_size)


def draw_output_size(data: st.DataObject, dimensions: int) -> Any:
    """A size of the result; None keeps the input's, where torch takes it."""
    sizes = st.integers(1, 5)
    if dimensions == 1:
        return data.draw(sizes)
    return data.draw(st.one_of(sizes, st.tuples(*[st.one_of(st.none(), sizes)] * dimensions)))


TABLE = {
    "MaxPool": {"kernel_size": 2, "stride": 1, "padding": 1},
    "AvgPool": {"kernel_size": 2, "stride": 1, "padding": 1, "count_include_pad": False},
    "LPPool": {"norm_type": 2, "kernel_size": 2},
    "AdaptiveMaxPool": {"output_size": 2},
    "AdaptiveAvgPool": {"output_size": 2},
    "FractionalMaxPool": {"kernel_size": 2, "output_size": 2},
}
LAYERS = [(family, dimensions) for family in TABLE for dimensions in (1, 2, 3)]
LAYERS.remove(("FractionalMaxPool", 1))


@pytest.mark.parametrize(("family", "dimensions"), LAYERS)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_transformations(family: str, dimensions: int, batch: tuple[int, ...], device: torch.device) -> None:
    """Every pooling keeps the promises of the shared table, for one input and for a batch."""
    cls, function, _ = find(family, dimensions)
    inputs = numbers(2, *batch, 2, *[4] * dimensions, device=device)
    if family == "LPPool":
        inputs = inputs.abs() + 0.1
    check_transformations(lambda seed: cls(**TABLE[family]), function, inputs, compile=batch == (2,))


def test_options_in_torch_order(device: torch.device) -> None:
    """Options may be given by position, as in torch.nn."""
    x = numbers(1, 1, 8, 8, device=device)
    same(layers.MaxPool2d(3, 2, 1)(x), nn.MaxPool2d(3, 2, 1)(x))
    same(layers.AvgPool2d(3, 2, 1)(x), nn.AvgPool2d(3, 2, 1)(x))
    same(layers.LPPool2d(2, 3)(x), nn.LPPool2d(2, 3)(x))
    assert repr(layers.AdaptiveAvgPool2d(1)) == "AdaptiveAvgPool2d(output_size=1)"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: layers.MaxPool2d(2)(torch.zeros(4, 4)),
            pn.errors.ShapeError,
            "max_pool2d: x must be [batch, channels, height, width] or [channels, height, width], got shape [4, 4].",
        ),
        (
            lambda: layers.AdaptiveAvgPool3d(2)(torch.zeros(4, 4, 4)),
            pn.errors.ShapeError,
            "adaptive_avg_pool3d: x must be [batch, channels, depth, height, width] or [channels, depth, height, "
            "width], got shape [4, 4, 4].",
        ),
        (
            lambda: layers.MaxPool2d([2, 2]),
            pn.errors.ContainerError,
            "MaxPool2d.kernel_size is a static field and must be hashable, got a list: use a tuple instead of a list, "
            "and a tuple of pairs instead of a dict.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
