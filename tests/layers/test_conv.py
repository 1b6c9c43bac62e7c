"""Convolutions and transposed convolutions: equal to torch.nn's for every option, and batchable."""

import math
from typing import Any

import pytest
import torch
from _reference import check_equals_module, filled, numbers, per_dimension, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import purenn as pn
from purenn import layers

CONVOLUTIONS = {1: layers.Conv1d, 2: layers.Conv2d, 3: layers.Conv3d}
TRANSPOSED = {1: layers.ConvTranspose1d, 2: layers.ConvTranspose2d, 3: layers.ConvTranspose3d}
FUNCTIONS = {
    layers.Conv1d: layers.conv1d,
    layers.Conv2d: layers.conv2d,
    layers.Conv3d: layers.conv3d,
    layers.UnfoldConv2d: layers.unfold_conv2d,
    layers.ConvTranspose1d: layers.conv_transpose1d,
    layers.ConvTranspose2d: layers.conv_transpose2d,
    layers.ConvTranspose3d: layers.conv_transpose3d,
}


def as_tuple(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """An option written out for each dimension."""
    return (value,) * dimensions if isinstance(value, int) else value


def draw_input(data: st.DataObject, channels: int, smallest: list[int], device: torch.device) -> Tensor:
    """A batch, or a single input, a little larger than it must be."""
    spatial = [size + data.draw(st.integers(0, 2)) for size in smallest]
    batch = data.draw(st.sampled_from([(), (1,), (2,)]))
    return numbers(*batch, channels, *spatial, seed=data.draw(st.integers(0, 9)), device=device)


# torch warns that kernels of even size cost it a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("cls", [*CONVOLUTIONS.values(), layers.UnfoldConv2d])
@given(data=st.data())
def test_convolution_equals_torch(cls: Any, data: st.DataObject, device: torch.device) -> None:
    """Values, gradients and second derivatives are torch's for every combination of options."""
    dimensions = cls.dimensions
    kernel_size = per_dimension(data, st.integers(1, 3), dimensions)
    stride = per_dimension(data, st.integers(1, 3), dimensions)
    dilation = per_dimension(data, st.integers(1, 2), dimensions)
    groups = data.draw(st.integers(1, 2))
    padding = data.draw(st.sampled_from(["same", "valid", "number", "number"]))
    if padding == "number":
        padding = per_dimension(data, st.integers(0, 2), dimensions)
    elif padding == "same":
        stride = 1
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "padding_mode": data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    in_channels, out_channels = 2 * groups, groups * data.draw(st.integers(1, 2))
    reach = [
        (size - 1) * step + 1
        for size, step in zip(as_tuple(kernel_size, dimensions), as_tuple(dilation, dimensions), strict=True)
    ]
    x = draw_input(data, in_channels, [max(size, 3) for size in reach], device)
    name = "Conv2d" if cls is layers.UnfoldConv2d else cls.__name__
    module = getattr(nn, name)(in_channels, out_channels, kernel_size, **options, dtype=torch.float64, device=device)
    p = cls.init(pn.random.key(0), in_channels, out_channels, kernel_size, **options)
    assert p.extra_repr() == module.extra_repr()
    check_equals_module(p, FUNCTIONS[cls], module, x)


@pytest.mark.parametrize("cls", TRANSPOSED.values())
@given(data=st.data())
def test_transposed_convolution_equals_torch(cls: Any, data: st.DataObject, device: torch.device) -> None:
    """Values, gradients and second derivatives are torch's for every combination of options."""
    dimensions = cls.dimensions
    kernel_size, stride, dilation = (per_dimension(data, st.integers(1, most), dimensions) for most in (3, 3, 2))
    limits = [max(pair) for pair in zip(as_tuple(stride, dimensions), as_tuple(dilation, dimensions), strict=True)]
    options = {
        "stride": stride,
        "padding": per_dimension(data, st.integers(0, 1), dimensions),
        "dilation": dilation,
        "output_padding": tuple(data.draw(st.integers(0, limit - 1)) for limit in limits),
        "groups": data.draw(st.integers(1, 2)),
        "bias": data.draw(st.booleans()),
    }
    in_channels, out_channels = 2 * options["groups"], options["groups"] * data.draw(st.integers(1, 2))
    x = draw_input(data, in_channels, [3] * dimensions, device)
    module = getattr(nn, cls.__name__)(
        in_channels, out_channels, kernel_size, **options, dtype=torch.float64, device=device
    )
    p = cls.init(pn.random.key(0), in_channels, out_channels, kernel_size, **options)
    assert p.extra_repr() == module.extra_repr()
    check_equals_module(p, FUNCTIONS[cls], module, x)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_transposed_convolution_to_an_output_size(
    dimensions: int, extra: int, whole: bool, device: torch.device
) -> None:
    """The size that was asked for comes out, with torch's values, whether or not batch and channels are named too."""
    cls = TRANSPOSED[dimensions]
    options = {"stride": 3, "padding": 1, "dilation": 2}
    module = getattr(nn, cls.__name__)(2, 3, 3, **options, dtype=torch.float64, device=device)
    x = numbers(2, 2, *[3] * dimensions, device=device)
    output_size = (*((2, 3) if whole else ()), *[9 + extra] * dimensions)
    p = cls.init(pn.random.key(0), 2, 3, 3, **options)
    check_equals_module(p, FUNCTIONS[cls], module, x, output_size=output_size)
    assert FUNCTIONS[cls](filled(p, module), x, output_size=output_size).shape[2:] == (9 + extra,) * dimensions


def test_an_output_size_undoes_a_strided_convolution(device: torch.device) -> None:
    """Two inputs that a convolution maps to one size are told apart by their sizes."""
    down = layers.Conv2d.init(pn.random.key(0, device=device), 1, 1, 3, stride=2, padding=1)
    up = layers.ConvTranspose2d.init(pn.random.key(1, device=device), 1, 1, 3, stride=2, padding=1)
    for size in (11, 12):
        x = numbers(1, 1, size, size, device=device).float()
        y = down(x)
        assert y.shape == (1, 1, 6, 6)
        assert up(y, output_size=x.shape[2:]).shape == x.shape


@pytest.mark.parametrize(
    ("cls", "kernel_size", "fan_in"),
    [(layers.Conv2d, (3, 5), 4 * 15), (layers.Conv1d, 7, 4 * 7), (layers.ConvTranspose2d, 3, 25 * 9)],
)
def test_init(cls: Any, kernel_size: Any, fan_in: int, device: torch.device) -> None:
    """Weight and bias are spread evenly up to 1 / sqrt(fan-in), torch's bound."""
    p = cls.init(pn.random.key(0, device=device), 8, 50, kernel_size, groups=2, dtype=torch.float64)
    bound = 1 / math.sqrt(fan_in)
    for leaf in (p.weight, p.bias):
        assert 0.9 * bound < leaf.abs().max() <= bound
        assert abs(leaf.std() / (bound / math.sqrt(3)) - 1) < 0.15
    assert (p.in_channels, p.out_channels) == (8, 50)
    assert p.kernel_size == as_tuple(kernel_size, cls.dimensions)


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_init_on_meta(cls: Any, device: torch.device) -> None:
    """On the meta device nothing is allocated, and shapes and dtypes are right."""
    p = cls.init(pn.random.key(0, device=device), 10**4, 10**4, 3, dtype=torch.bfloat16, device="meta")
    assert all(leaf.is_meta and leaf.dtype == torch.bfloat16 for leaf in pn.tree.leaves(p))
    assert p.weight.shape == (10**4, 10**4, *[3] * cls.dimensions)
    assert p.bias.shape == (10**4,)


def test_options_may_be_plain_numbers(device: torch.device) -> None:
    """A container that is built from parts takes one number for all dimensions, like a call of torch's function."""
    x, weight = numbers(2, 2, 7, 7, device=device), numbers(4, 2, 3, 3, device=device)
    p = layers.Conv2d(weight, None, stride=2, padding=1)
    same(p(x), torch.nn.functional.conv2d(x, weight, None, 2, 1))
    same(layers.UnfoldConv2d(weight, None, stride=2, padding=1)(x), p(x))
    p = layers.ConvTranspose2d(weight, None, stride=2, padding=1)
    y = numbers(2, 4, 5, 5, device=device)
    same(p(y, output_size=(10, 10)), torch.nn.functional.conv_transpose2d(y, weight, None, 2, 1, 1))


@pytest.mark.slow
def test_unfolded_convolution_of_photographs(device: torch.device) -> None:
    """A batch [32, 3, 224, 224] becomes [32, 64, 224, 224] by matrix products, up to the rounding of float32."""
    p = layers.UnfoldConv2d.init(pn.random.key(0, device=device), 3, 64, 3, padding=1)
    x = numbers(1, 3, 224, 224, device=device).float().expand(32, -1, -1, -1)
    y = p(x)
    assert y.shape == (32, 64, 224, 224)
    expected = layers.conv2d(layers.Conv2d(p.weight, p.bias, p.stride, p.padding), x[:1])
    torch.testing.assert_close(y[:1], expected, rtol=0, atol=1e-5)


def test_repr(device: torch.device) -> None:
    """A convolution prints what torch's prints."""
    p = layers.Conv2d.init(pn.random.key(0), 3, 8, 3, padding="same", padding_mode="circular", bias=False)
    assert repr(p) == (
        "Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=same, bias=False, padding_mode=circular)"
    )


TABLE = [
    (layers.Conv1d, {"stride": 2, "groups": 2}),
    (layers.Conv1d, {"padding": "same"}),
    (layers.Conv1d, {"padding": 1, "padding_mode": "reflect"}),
    (layers.Conv2d, {"padding": 1, "dilation": 2}),
    (layers.Conv2d, {"padding": "same", "groups": 2, "bias": False}),
    (layers.Conv2d, {"padding": 1, "padding_mode": "replicate"}),
    (layers.Conv2d, {"padding": 2, "padding_mode": "circular", "stride": 2}),
    (layers.Conv3d, {"stride": 2, "groups": 2}),
    (layers.Conv3d, {"padding": 1, "padding_mode": "reflect"}),
    (layers.UnfoldConv2d, {"padding": "same", "groups": 2}),
    (layers.ConvTranspose1d, {"stride": 2, "output_padding": 1, "groups": 2}),
    (layers.ConvTranspose2d, {"stride": 2, "padding": 1, "dilation": 2}),
    (layers.ConvTranspose3d, {"stride": 2, "groups": 2, "bias": False}),
]


@pytest.mark.parametrize(("cls", "options"), TABLE)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_transformations(cls: Any, options: dict[str, Any], batch: tuple[int, ...], device: torch.device) -> None:
    """Every convolution keeps the promises of the shared table, for one input and for a batch, with even kernels."""

    def make(seed: int) -> Any:
        return cls.init(pn.random.key(seed, device=device), 2, 2, 2, dtype=torch.float64, **options)

    inputs = numbers(3, *batch, 2, *[3] * cls.dimensions, device=device)
    check_transformations(make, FUNCTIONS[cls], inputs, compile=batch == (2,))


CHANNELS_LAST = torch.zeros(2, 8, 8, 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda key: layers.Conv2d.init(key, 3, 4, 3)(CHANNELS_LAST),
            pn.errors.ShapeError,
            "conv2d: x must be [batch, 3, height, width] or [3, height, width], got shape [2, 8, 8, 3]. If its "
            "channels come last, move them: x.movedim(-1, -3).",
        ),
        (
            lambda key: layers.UnfoldConv2d.init(key, 3, 4, 3)(CHANNELS_LAST[0, 0]),
            pn.errors.ShapeError,
            "unfold_conv2d: x must be [batch, 3, height, width] or [3, height, width], got shape [8, 3]. If its "
            "channels come last, move them: x.movedim(-1, -3).",
        ),
        (
            lambda key: layers.ConvTranspose1d.init(key, 3, 4, 3)(CHANNELS_LAST),
            pn.errors.ShapeError,
            "conv_transpose1d: x must be [batch, 3, length] or [3, length], got shape [2, 8, 8, 3]. If its channels "
            "come last, move them: x.movedim(-1, -2).",
        ),
        (
            lambda key: layers.ConvTranspose2d.init(key, 3, 4, 3, stride=2)(
                torch.zeros(1, 3, 4, 4), output_size=(9, 11)
            ),
            pn.errors.ShapeError,
            "conv_transpose2d: output_size must lie between (9, 9) and (10, 10) for x of shape [1, 3, 4, 4], got (9, "
            "11).",
        ),
        (
            lambda key: layers.Conv2d.init(key, 3, 4, 3, groups=2),
            pn.errors.ArgumentError,
            "Conv2d.init: in_channels=3 and out_channels=4 must be multiples of groups=2, which must be positive.",
        ),
        (
            lambda key: layers.Conv2d.init(key, 3, 4, (3, 3, 3)),
            pn.errors.ArgumentError,
            "Conv2d.init: kernel_size must be one number, or 2 (one for each spatial dimension), got (3, 3, 3).",
        ),
        (
            lambda key: layers.Conv2d.init(key, 3, 4, 3, padding="full"),
            pn.errors.ArgumentError,
            "Conv2d.init: padding must be numbers, 'same' or 'valid', got 'full'.",
        ),
        (
            lambda key: layers.Conv2d.init(key, 3, 4, 3, stride=2, padding="same"),
            pn.errors.ArgumentError,
            "Conv2d.init: padding='same' needs stride 1, got (2, 2). Give the padding in numbers.",
        ),
        (
            lambda key: layers.Conv3d.init(key, 3, 4, 3, padding_mode="mirror"),
            pn.errors.ArgumentError,
            "Conv3d.init: padding_mode must be one of zeros, reflect, replicate, circular, got 'mirror'.",
        ),
        (
            lambda key: layers.ConvTranspose2d.init(key, 3, 4, 3, stride=(2, 1), output_padding=1),
            pn.errors.ArgumentError,
            "ConvTranspose2d.init: output_padding must be less than stride or than dilation, got output_padding=(1, "
            "1), stride=(2, 1) and dilation=(1, 1).",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call(pn.random.key(0))
    assert str(caught.value) == text
