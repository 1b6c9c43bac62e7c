"""Upsampling: equal to torch.nn's in all modes, and batchable in all, which torch's own is not."""

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
from purenn.layers import Upsample, upsample

MODES = [
    *((mode, dimensions) for mode in ("nearest", "nearest-exact", "area") for dimensions in (1, 2, 3)),
    ("linear", 1),
    ("bilinear", 2),
    ("bicubic", 2),
    ("trilinear", 3),
]
INTERPOLATING = ("linear", "bilinear", "bicubic", "trilinear")
TOLERANCE = 1e-12


def draw_size(data: st.DataObject, dimensions: int) -> dict[str, Any]:
    """A size of the result or factors of the input's, one for all dimensions or one for each."""
    if data.draw(st.booleans()):
        sizes = st.integers(1, 9)
        return {"size": data.draw(st.one_of(sizes, st.tuples(*[sizes] * dimensions)))}
    factors = st.sampled_from([0.5, 1, 1.3, 2, 2.71])
    return {"scale_factor": data.draw(st.one_of(factors, st.tuples(*[factors] * dimensions)))}


@pytest.mark.parametrize(("mode", "dimensions"), MODES)
@given(data=st.data())
def test_upsample_equals_torch(mode: str, dimensions: int, data: st.DataObject, device: torch.device) -> None:
    """Values and derivatives are torch's for every combination of options, and under vmap as well."""
    options = {"mode": mode, **draw_size(data, dimensions)}
    if mode in INTERPOLATING:
        options["align_corners"] = data.draw(st.sampled_from([None, False, True]))
    if "scale_factor" in options:
        options["recompute_scale_factor"] = data.draw(st.sampled_from([None, False, True]))
    shape = data.draw(st.tuples(*[st.integers(2, 6)] * dimensions))
    x = numbers(2, 3, *shape, seed=data.draw(st.integers(0, 9)), device=device)
    module = nn.Upsample(**options)
    check_equals_module(Upsample(**options), upsample, module, x, tolerance=TOLERANCE)
    batched = torch.func.vmap(Upsample(**options))(torch.stack([x, x.flip(0)]))
    same(batched, torch.stack([module(x), module(x.flip(0))]), tolerance=TOLERANCE)


@pytest.mark.parametrize("name", ["Nearest", "Bilinear"])
@given(data=st.data())
def test_upsampling_of_images_equals_torch(name: str, data: st.DataObject, device: torch.device) -> None:
    """The two layers for images are torch's."""
    options = draw_size(data, 2)
    cls, function = getattr(layers, f"Upsampling{name}2d"), getattr(layers, f"upsampling_{name.lower()}2d")
    x = numbers(2, 3, 4, 5, seed=data.draw(st.integers(0, 9)), device=device)
    check_equals_module(cls(**options), function, getattr(nn, f"Upsampling{name}2d")(**options), x, tolerance=TOLERANCE)


@pytest.mark.parametrize(("mode", "dimensions"), MODES)
def test_transformations(mode: str, dimensions: int, device: torch.device) -> None:
    """Every mode keeps the promises of the shared table, without a fallback."""
    x = numbers(2, 2, 2, *[3] * dimensions, device=device)
    check_transformations(lambda seed: Upsample(scale_factor=1.7, mode=mode), upsample, x)
    if mode in INTERPOLATING:
        p = Upsample(size=(5, 4, 2)[:dimensions], mode=mode, align_corners=True)
        check_transformations(lambda seed: p, upsample, x, compile=False)


def test_layers_of_images_under_transformations(device: torch.device) -> None:
    """The two layers for images keep the promises of the shared table."""
    x = numbers(2, 2, 2, 3, 3, device=device)
    for p in (layers.UpsamplingNearest2d(scale_factor=2), layers.UpsamplingBilinear2d(size=(5, 2))):
        check_transformations(lambda seed, p=p: p, type(p).__call__, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(size=st.integers(1, 60), out_size=st.integers(1, 99), factor=st.one_of(st.none(), st.floats(1, 4)))
def test_exact_repetition_under_vmap(
    dtype: torch.dtype, size: int, out_size: int, factor: float | None, device: torch.device
) -> None:
    """Under vmap the same elements are repeated, bit for bit, also where positions are rounded."""
    p = Upsample(out_size if factor is None else None, factor, "nearest-exact")
    x = torch.arange(size, device=device).to(dtype).reshape(1, 1, -1)
    assert torch.equal(torch.func.vmap(p)(x.unsqueeze(0))[0], nn.Upsample(p.size, p.scale_factor, p.mode)(x))


@pytest.mark.parametrize(("mode", "dimensions"), MODES)
def test_half_precision(mode: str, dimensions: int, device: torch.device) -> None:
    """In bfloat16 results are torch's, up to one rounding under vmap."""
    p, x = Upsample(scale_factor=2, mode=mode), numbers(2, 2, *[3] * dimensions, device=device).bfloat16()
    expected = nn.Upsample(scale_factor=2, mode=mode)(x)
    assert torch.equal(p(x), expected)
    same(torch.func.vmap(p)(x.unsqueeze(0))[0].float(), expected.float(), tolerance=0.02)


def test_options_and_repr() -> None:
    """Options have torch's order and are written as torch writes them."""
    assert pn.tree.leaves(Upsample(scale_factor=2)) == []
    for options in ({"size": (3, 4)}, {"scale_factor": 2, "mode": "bilinear"}, {"scale_factor": (1, 2)}):
        assert repr(Upsample(**options)) == repr(nn.Upsample(**options))
    assert repr(layers.UpsamplingNearest2d(3)) == "UpsamplingNearest2d(size=3)"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: Upsample(),
            pn.errors.ArgumentError,
            "Upsample: exactly one of size and scale_factor must be given, got size=None and scale_factor=None.",
        ),
        (
            lambda: layers.UpsamplingBilinear2d(3, 2),
            pn.errors.ArgumentError,
            "UpsamplingBilinear2d: exactly one of size and scale_factor must be given, got size=3 and "
            "scale_factor=2.0.",
        ),
        (
            lambda: Upsample(3, mode="cubic"),
            pn.errors.ArgumentError,
            "Upsample: mode must be one of nearest, nearest-exact, area, linear, bilinear, bicubic, trilinear, got "
            "'cubic'.",
        ),
        (
            lambda: Upsample(3, align_corners=True),
            pn.errors.ArgumentError,
            "Upsample: align_corners is an option of the modes linear, bilinear, bicubic, trilinear only, got mode="
            "'nearest'. Leave it out.",
        ),
        (
            lambda: Upsample(3, recompute_scale_factor=True),
            pn.errors.ArgumentError,
            "Upsample: recompute_scale_factor needs scale_factor; with size there is none.",
        ),
        (
            lambda: Upsample(3, mode="bilinear")(torch.zeros(2, 4, 4)),
            pn.errors.ShapeError,
            "upsample: in mode 'bilinear' x must be [batch, channels, height, width], got shape [2, 4, 4]. An input "
            "without a batch dimension needs x.unsqueeze(0).",
        ),
        (
            lambda: Upsample(3)(torch.zeros(4, 4)),
            pn.errors.ShapeError,
            "upsample: in mode 'nearest' x must be [batch, channels, length] or [batch, channels, height, width] or "
            "[batch, channels, depth, height, width], got shape [4, 4]. An input without a batch dimension needs "
            "x.unsqueeze(0).",
        ),
        (
            lambda: Upsample(scale_factor=(2, 2))(torch.zeros(1, 1, 4)),
            pn.errors.ShapeError,
            "upsample: scale_factor must be one number, or one for each of the 1 spatial dimensions of x of shape "
            "[1, 1, 4], got (2.0, 2.0).",
        ),
        (
            lambda: layers.UpsamplingNearest2d(3)(torch.zeros(1, 1, 4)),
            pn.errors.ShapeError,
            "upsampling_nearest2d: x must be [batch, channels, height, width], got shape [1, 1, 4].",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes and options are refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
