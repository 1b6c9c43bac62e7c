"""What all tests of modules share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Modules draw their parameters from torch's own generator."""
    torch.manual_seed(0)
