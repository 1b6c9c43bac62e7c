"""Row 43 of the list of components, and that every row has a test that names it."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from _matrix import check_cell
from torch import nn

from purenn import losses

LOSSES = tuple(
    name
    for name, cls in inspect.getmembers(nn, inspect.isclass)
    if cls.__module__ == "torch.nn.modules.loss" and name != "NLLLoss2d"
)


@pytest.mark.parametrize("name", LOSSES)
def test_row_43_losses(name: str, device: torch.device) -> None:
    """Each loss of torch.nn is here, with torch's values and gradients for all samples of the matrix."""
    assert hasattr(losses, name)
    check_cell(name, "forward", device)
    check_cell(name, "gradients", device)


def test_every_row_has_a_test() -> None:
    """Somewhere in these tests there is a ``test_row_NN`` for each of the 59 rows."""
    tests = Path(__file__).parent.parent
    found = {int(n) for file in tests.rglob("test_*.py") for n in re.findall(r"def test_row_(\d\d)_", file.read_text())}
    assert found == set(range(1, 60))
