"""The spread loss and the schedule of its margin."""

import pytest
import torch
from torch.func import grad, vmap

from purenn.errors import ArgumentError, ShapeError
from purenn.losses import spread_loss, spread_margin


def test_spread_loss(device: torch.device) -> None:
    """It is the sum over the wrong classes of the squared margin that is missing."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(5, 4, generator=generator, dtype=torch.float64).to(device)
    target = torch.tensor([0, 3, 1, 1, 2], device=device)
    each = torch.stack(
        [
            sum((0.7 - (a[t] - a[i])).clamp(min=0) ** 2 for i in range(4) if i != t)
            for a, t in zip(activations, target, strict=True)
        ]
    )
    got = spread_loss(activations, target, margin=0.7, reduction="none")
    torch.testing.assert_close(got, each, rtol=0, atol=1e-14)
    torch.testing.assert_close(spread_loss(activations, target, margin=0.7), each.mean())
    torch.testing.assert_close(vmap(lambda a, t: spread_loss(a, t, margin=0.7))(activations, target), each)
    perfect = torch.eye(4, dtype=torch.float64, device=device)
    assert spread_loss(perfect, torch.arange(4, device=device)) == 0
    assert torch.equal(grad(spread_loss)(perfect, torch.arange(4, device=device)), torch.zeros_like(perfect))


def test_margin_schedule() -> None:
    """The margin grows linearly from 0.2 to 0.9 and stays there, for numbers and tensors alike."""
    margins = [spread_margin(step, 10).item() for step in (0, 5, 10, 20)]
    assert margins == pytest.approx([0.2, 0.55, 0.9, 0.9])
    assert spread_margin(torch.tensor(5), 10).item() == pytest.approx(0.55)
    assert spread_margin(1, 2, first=0.0, last=1.0).item() == pytest.approx(0.5)


def test_errors() -> None:
    """Shapes and the number of steps are checked."""
    with pytest.raises(ShapeError) as error:
        spread_loss(torch.rand(3, 4), torch.zeros(2, dtype=torch.int64))
    assert str(error.value) == (
        "spread_loss: target must hold one class for every example, shape (3,) for activations of shape (3, 4), got "
        "(2,)."
    )
    with pytest.raises(ArgumentError) as error:
        spread_margin(1, 0)
    assert str(error.value) == "spread_margin: steps must be at least 1, got 0."
