"""What the routings learn: the benchmark's small network on digits, for a few epochs."""

import pytest
import torch
from digits_routings import classify, load, trained


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["agreement", "self", "attention", "inverted"])
def test_digits(routing: str, device: torch.device) -> None:
    """Four epochs are enough for nine of ten held-out digits."""
    train, test, train_target, test_target = load(0, device)
    p = trained(routing, 0, 4, train, train_target)
    with torch.no_grad():
        right = classify(p, test).activations.argmax(-1) == test_target
    assert right.double().mean().item() >= 0.9
