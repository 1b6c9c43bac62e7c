"""The capsule losses against their formulas written as loops."""

import pytest
import torch

from purenn.errors import ArgumentError, ShapeError
from purenn.losses import margin_loss, reconstruction_loss


def test_margin_loss(device: torch.device) -> None:
    """It is the paper's sum over classes, averaged over the batch."""
    lengths = torch.rand(6, 4, dtype=torch.float64, device=device)
    target = torch.tensor([0, 3, 1, 1, 2, 0], device=device)
    each = []
    for row, k in zip(lengths.tolist(), target.tolist(), strict=True):
        terms = [max(0, 0.9 - v) ** 2 if n == k else 0.5 * max(0, v - 0.1) ** 2 for n, v in enumerate(row)]
        each.append(sum(terms))
    expected = torch.tensor(each, dtype=torch.float64, device=device)
    torch.testing.assert_close(margin_loss(lengths, target, reduction="none"), expected)
    torch.testing.assert_close(margin_loss(lengths, target, reduction="sum"), expected.sum())
    torch.testing.assert_close(margin_loss(lengths, target), expected.mean())
    one = torch.func.vmap(margin_loss)(lengths, target)
    torch.testing.assert_close(one, expected)
    other = margin_loss(lengths, target, positive=0.8, negative=0.2, weight=1.0)
    assert other != expected.mean()


def test_margin_loss_is_zero_within_the_margins(device: torch.device) -> None:
    """A long right capsule and short wrong ones cost nothing and have no gradient."""
    lengths = torch.tensor([[0.95, 0.05, 0.1]], device=device)
    target = torch.tensor([0], device=device)
    assert margin_loss(lengths, target) == 0
    assert torch.equal(torch.func.grad(margin_loss)(lengths, target), torch.zeros_like(lengths))


def test_reconstruction_loss(device: torch.device) -> None:
    """It is the weighted sum of squares over each image, averaged over the batch."""
    a = torch.rand(3, 1, 4, 4, dtype=torch.float64, device=device)
    b = torch.rand(3, 1, 4, 4, dtype=torch.float64, device=device)
    each = torch.stack([0.0005 * ((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(reconstruction_loss(a, b), each.mean())
    torch.testing.assert_close(reconstruction_loss(a, b, reduction="none"), each)
    torch.testing.assert_close(reconstruction_loss(a[0], b[0], weight=1.0), 2000 * each[0])
    flat = reconstruction_loss(a.flatten(1), b.flatten(1), event_dims=1, reduction="sum")
    torch.testing.assert_close(flat, each.sum())


def test_errors() -> None:
    """Shapes and reductions are checked."""
    with pytest.raises(ShapeError) as error:
        margin_loss(torch.rand(3, 4), torch.zeros(3, 4, dtype=torch.int64))
    assert str(error.value) == (
        "margin_loss: target must hold one class for every example, shape (3,) for lengths of shape (3, 4), got (3, 4)."
    )
    with pytest.raises(ShapeError) as error:
        reconstruction_loss(torch.rand(2, 1, 3, 3), torch.rand(2, 3, 3))
    assert str(error.value) == (
        "reconstruction_loss: the reconstruction has shape (2, 1, 3, 3), the image (2, 3, 3); they must be equal."
    )
    with pytest.raises(ShapeError) as error:
        reconstruction_loss(torch.rand(2, 9), torch.rand(2, 9))
    assert str(error.value) == (
        "reconstruction_loss: an image has event_dims=3 axes, got shape (2, 9). For flat images write event_dims=1."
    )
    with pytest.raises(ArgumentError) as error:
        margin_loss(torch.rand(3, 4), torch.rand(3))
    assert str(error.value) == "margin_loss: target must hold class numbers, integers, got torch.float32."
    with pytest.raises(ArgumentError) as error:
        margin_loss(torch.rand(3, 4), torch.zeros(3, dtype=torch.int64), reduction="average")
    assert str(error.value) == "reduction must be 'mean', 'sum' or 'none', got 'average'."
