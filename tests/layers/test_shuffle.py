"""Shuffles of pixels and channels: equal to torch.nn's, and each other's inverses."""

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
from purenn.layers import (
    ChannelShuffle,
    PixelShuffle,
    PixelUnshuffle,
    channel_shuffle,
    pixel_shuffle,
    pixel_unshuffle,
)


@given(factor=st.integers(1, 3), batch=st.sampled_from([(), (2,), (2, 3)]))
def test_pixels_equal_torch(factor: int, batch: tuple[int, ...], device: torch.device) -> None:
    """Both directions are torch's for any number of batch dimensions, and undo each other."""
    x = numbers(*batch, 2 * factor**2, 2, 3, device=device)
    check_equals_module(PixelShuffle(factor), pixel_shuffle, nn.PixelShuffle(factor), x)
    y = pixel_shuffle(PixelShuffle(factor), x)
    check_equals_module(PixelUnshuffle(factor), pixel_unshuffle, nn.PixelUnshuffle(factor), y)
    assert torch.equal(pixel_unshuffle(PixelUnshuffle(factor), y), x)


@pytest.mark.parametrize("p", [PixelShuffle(2), PixelUnshuffle(2), ChannelShuffle(2)])
def test_batch_of_no_examples(p: Any, device: torch.device) -> None:
    """It has the sizes of torch's result, and a gradient of its own shape."""
    x = torch.empty(0, 8, 4, 6, device=device, requires_grad=True)
    y = p(x)
    assert y.shape == p(torch.ones(1, 8, 4, 6, device=device))[:0].shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@given(groups=st.integers(1, 3), space=st.sampled_from([(3,), (2, 3), (2, 1, 3)]))
def test_channels_equal_torch(groups: int, space: tuple[int, ...], device: torch.device) -> None:
    """Channels are shuffled as in torch, for any number of spatial dimensions."""
    x = numbers(2, 2 * groups, *space, device=device)
    check_equals_module(ChannelShuffle(groups), channel_shuffle, nn.ChannelShuffle(groups), x)


def test_order_of_channels(device: torch.device) -> None:
    """Six channels in two groups come out as 0, 3, 1, 4, 2, 5."""
    y = channel_shuffle(ChannelShuffle(2), torch.arange(6.0, device=device).reshape(1, 6, 1))
    assert y.flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("p", "shape"), [(PixelShuffle(2), (4, 2, 3)), (PixelUnshuffle(2), (1, 4, 2)), (ChannelShuffle(2), (1, 4, 3))]
)
def test_transformations(p: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Every shuffle keeps the promises of the shared table."""
    check_transformations(lambda seed: p, type(p).__call__, numbers(2, *shape, device=device))
    x = numbers(*shape, device=device).bfloat16()
    same(p(x).double(), p(x.double()))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: layers.PixelShuffle(2)(torch.zeros(6, 2, 2)),
            "pixel_shuffle: x must be [*batch, channels, height, width] with a multiple of upscale_factor ** 2 = 4 "
            "channels, got shape [6, 2, 2].",
        ),
        (
            lambda: layers.PixelUnshuffle(2)(torch.zeros(6, 2, 3)),
            "pixel_unshuffle: x must be [*batch, channels, height, width] with height and width multiples of "
            "downscale_factor=2, got shape [6, 2, 3].",
        ),
        (
            lambda: layers.ChannelShuffle(2)(torch.zeros(4, 4)),
            "channel_shuffle: x must be [batch, channels, *space] with a multiple of groups=2 channels, got shape [4, "
            "4]. An input without a batch dimension needs x.unsqueeze(0).",
        ),
    ],
)
def test_errors(call: Any, text: str) -> None:
    """Wrong shapes are refused with a text that says what to do."""
    with pytest.raises(pn.errors.ShapeError) as caught:
        call()
    assert str(caught.value) == text
