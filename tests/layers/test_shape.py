"""Layers that rearrange, pass on, or apply a function."""

from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers
from _transformations import check_transformations
from torch import Tensor, nn

from purenn import layers


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3, 4), (5,), (2, 3, 4, 5)])
def test_flatten_equals_torch(shape: tuple[int, ...], device: torch.device) -> None:
    """The first dimension stays, also when it is empty."""
    x = numbers(*shape, device=device)
    start = min(1, len(shape) - 1)
    check_equals_module(layers.Flatten(start), layers.flatten, nn.Flatten(start), x)


def test_flatten_of_channels_last(device: torch.device) -> None:
    """The order of the elements is that of the dimensions, not that of the memory."""
    x = numbers(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
    check_equals_module(layers.Flatten(), layers.flatten, nn.Flatten(), x)
    assert torch.equal(layers.flatten(layers.Flatten(), x), x.contiguous().view(2, 60))


@pytest.mark.parametrize(("start", "end"), [(0, -1), (1, 2), (-2, -1)])
def test_flatten_of_some_dimensions(start: int, end: int, device: torch.device) -> None:
    """The first and the last dimension to merge can be chosen."""
    x = numbers(2, 3, 4, 5, device=device)
    check_equals_module(layers.Flatten(start, end), layers.flatten, nn.Flatten(start, end), x)


@pytest.mark.parametrize(("dim", "size"), [(1, (2, 3)), (-1, (2, -1)), (0, (2, 1))])
def test_unflatten_equals_torch(dim: int, size: tuple[int, ...], device: torch.device) -> None:
    """One dimension becomes several; one of their sizes may be inferred."""
    x = numbers(2, 6, 4, device=device)
    check_equals_module(layers.Unflatten(dim, size), layers.unflatten, nn.Unflatten(dim, size), x)


def test_identity(device: torch.device) -> None:
    """The result is the very tensor that was given."""
    x = numbers(3, device=device)
    assert layers.identity(layers.Identity(), x) is x


def add(x: Tensor, y: Tensor | float = 1.0, *, sign: float = 1.0) -> Tensor:
    """A function with several arguments."""
    return x + sign * y


def test_lambda(device: torch.device) -> None:
    """A function becomes a layer, with all its arguments; equal functions make equal structures."""
    x = numbers(3, device=device)
    p = layers.Lambda(add)
    assert torch.equal(layers.lambda_(p, x), x + 1)
    assert torch.equal(p(x, x, sign=-1.0), torch.zeros_like(x))
    assert repr(p) == "Lambda(function=add)"
    assert torch.utils._pytree.tree_structure(p) == torch.utils._pytree.tree_structure(layers.Lambda(add))


@pytest.mark.parametrize(
    ("p", "function"),
    [
        (layers.Flatten(), layers.flatten),
        (layers.Unflatten(1, (2, 3)), layers.unflatten),
        (layers.Identity(), layers.identity),
        (layers.Lambda(torch.sin), layers.lambda_),
    ],
)
def test_transformations(p: Any, function: Any, device: torch.device) -> None:
    """Every layer of the family keeps the promises of the shared table."""
    check_transformations(lambda seed: p, function, numbers(3, 2, 6, 2, device=device))
