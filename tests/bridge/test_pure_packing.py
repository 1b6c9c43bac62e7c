"""Packed sequences within an opaque container."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _module_inputs import DOUBLE, randn
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bridge
import purenn as pn


def test_packed_sequences(device: torch.device) -> None:
    """A recurrent module takes packed sequences, also within transformations."""
    module = nn.LSTM(3, 4, 2, bidirectional=True).to(device, DOUBLE)
    p, x = bridge.from_module(module), randn(device, 5, 3, 3)
    lengths = torch.tensor([2, 5, 3])

    def run(f: Callable[..., Any], x: Tensor) -> Tensor:
        y, (h, c) = f(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return torch.cat([part.flatten() for part in (y.data, h, c)])

    torch.testing.assert_close(run(p, x), run(module, x), rtol=0, atol=1e-12)
    module.zero_grad()
    run(module, x).square().sum().backward()
    found = torch.func.grad(lambda p: run(p, x).square().sum())(p)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(getattr(found, name), parameter.grad, rtol=0, atol=1e-10)


class Packing(nn.Module):
    """Packs and unpacks within."""

    def __init__(self, lengths: list[int], first: bool) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(3, 4, bidirectional=True, proj_size=2, batch_first=first)
        self.lengths, self.first = torch.tensor(lengths), first

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, self.lengths, self.first, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.recurrent(packed)[0], self.first, padding_value=2.0, total_length=6)
        return y


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("lengths", [[5, 3, 1], [2, 4, 3]])
def test_packing_within(lengths: list[int], first: bool, device: torch.device) -> None:
    """Modules that pack and unpack sequences themselves have the values and per-sample gradients of a loop."""
    p = bridge.from_module(Packing(lengths, first).to(device, DOUBLE))
    x = randn(device, 2, 5, 3, 3).transpose(1, 2) if first else randn(device, 2, 5, 3, 3)

    def loss(p: Any, x: Tensor) -> Tensor:
        return p(x).square().sum()

    torch.testing.assert_close(pn.vmap(p)(x), torch.stack([p(example) for example in x]), rtol=0, atol=1e-12)
    found = pn.vmap(pn.grad(loss), (None, 0))(p, x)
    expected = pn.tree.stack([pn.grad(loss)(p, example) for example in x])
    assert pn.tree.allclose(found, expected, rtol=0, atol=1e-12)
