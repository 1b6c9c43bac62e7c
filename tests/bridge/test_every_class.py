"""`bridge.from_module` on every class of torch.nn: values, purity, derivatives, batches, models.

Two samples of each class; ``python -m tests.bridge classes`` checks all of them and prints a table.
"""

import itertools

import pytest
import torch
from _opaque_cases import COLUMNS, EXCEPTIONS, OpaqueCase, opaque_samples
from _rows import ROWS
from torch import nn

CELLS = list(itertools.product(ROWS, COLUMNS))


@pytest.mark.parametrize(("row", "column"), CELLS, ids=[f"{row}-{column}" for row, column in CELLS])
def test_promise(row: str, column: str, device: torch.device) -> None:
    """The opaque container of a module keeps the promise of the column, but for named exceptions."""
    for sample in opaque_samples(row, 2):
        if (row, column, sample.name) not in EXCEPTIONS:
            case = OpaqueCase.of(sample)
            COLUMNS[column](case if device.type == "cpu" else case.moved(device))


def test_exceptions() -> None:
    """At most one in a hundred samples is an exception in a column, and none in the first three."""
    assert all(column in list(COLUMNS)[3:] for _, column, _ in EXCEPTIONS)
    assert len(EXCEPTIONS) <= 8
    assert all(issubclass(getattr(nn, row), nn.Module) for row, _, _ in EXCEPTIONS)
