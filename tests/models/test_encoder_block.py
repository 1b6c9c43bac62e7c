"""The Transformer's encoder block: published size, torch's own module, transformations."""

from collections.abc import Callable

import pytest
import torch
from _reference import numbers
from torch import nn

import purenn as pn
from purenn.layers import TransformerEncoderLayer


@pytest.mark.parametrize("norm_first", [False, True])
def test_row_39_size(norm_first: bool) -> None:
    """Row 39: the block (512, 8, 2048, 0.1) has 3,152,384 parameters, as Post-LN and as Pre-LN."""
    p = TransformerEncoderLayer.init(
        pn.random.key(0), 512, 8, 2048, 0.1, activation="gelu", norm_first=norm_first, batch_first=True, device="meta"
    )
    assert pn.tree.count(p) == 3_152_384
    assert p(torch.empty(2, 10, 512, device="meta")).shape == (2, 10, 512)


@pytest.mark.parametrize("norm_first", [False, True])
def test_row_39_equals_module(norm_first: bool, device: torch.device, check_equals_module: Callable[..., None]) -> None:
    """Row 39: names, outputs and gradients are those of torch's module of that name with GELU."""
    options = {"activation": "gelu", "norm_first": norm_first, "batch_first": True, "dtype": torch.float64}
    p = TransformerEncoderLayer.init(pn.random.key(0, device=device), 8, 2, 12, 0.1, **options)
    module = nn.TransformerEncoderLayer(8, 2, 12, 0.1, **options).to(device)
    check_equals_module(p, module, numbers(2, 5, 8, device=device))


def test_row_39_promises(device: torch.device, check_promises: Callable[..., None]) -> None:
    """Row 39: it keeps what all models promise."""
    check_promises(
        lambda seed: TransformerEncoderLayer.init(
            pn.random.key(seed, device=device), 4, 2, 3, activation="gelu", batch_first=True, dtype=torch.float64
        ),
        numbers(2, 2, 3, 4, device=device),
        table=False,
    )
