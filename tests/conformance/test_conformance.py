"""Every class of torch.nn keeps every promise, or there is a reason."""

import itertools

import pytest
import torch
from _cases import Case
from _columns import COLUMNS
from _exceptions import KNOWN_BUGS, LARGEST_SHARE, NEVER, REASONS
from _matrix import check_cell
from _rows import NOTHING, ROWS, samples
from _samples import Sample, torch_may_warn
from torch import nn

CELLS = list(itertools.product(ROWS, COLUMNS))
FAILING = [
    pytest.param(sample, id=f"{row}-{sample.name}")
    for row in ROWS
    for sample in samples(row)
    if sample.raises is not None
]


@pytest.mark.parametrize(("row", "column"), CELLS, ids=[f"{row}-{column}" for row, column in CELLS])
def test_cell(row: str, column: str, device: torch.device) -> None:
    """The promise of the column is kept by the row's layer, but for samples with a reason that still holds."""
    check_cell(row, column, device)


@pytest.mark.parametrize("sample", FAILING)
def test_fails_where_torch_does(sample: Sample) -> None:
    """What torch refuses is refused here as well, by an error of ours."""
    assert sample.raises is not None
    theirs, ours = sample.raises
    case = Case.of(sample)
    with pytest.raises(theirs), torch_may_warn():
        case.reference(case.fresh_module(), *case.inputs())
    with pytest.raises(ours):
        case.apply(case.p, *case.inputs())


def test_rows() -> None:
    """All 163 classes have a row, but for the 11 that compute nothing, and every row has samples."""
    classes = {name for name in dir(nn) if isinstance(cls := getattr(nn, name), type) and issubclass(cls, nn.Module)}
    assert set(ROWS) | set(NOTHING) == classes
    assert not set(ROWS) & set(NOTHING)
    assert all(samples(row) for row in ROWS)


def test_reasons() -> None:
    """Few cells have a reason, none of the most important ones, and each names an existing cell and says something."""
    assert set(REASONS) | set(KNOWN_BUGS) <= set(CELLS)
    assert not set(REASONS) & set(KNOWN_BUGS)
    assert len(REASONS) <= LARGEST_SHARE * len(CELLS)
    assert all(len(known.text) > 20 and known.samples != () for known in (*REASONS.values(), *KNOWN_BUGS.values()))
    assert not [cell for cell in REASONS if cell[1] in NEVER]


# What has gone wrong in libraries of layers before: options and inputs at the edges, by row.
EDGES = {
    "BatchNorm2d": ("momentum_none_train", "empty_batch", "batch_of_one", "strided"),
    "Conv2d": ("empty_batch", "channels_last", "unbatched"),
    "Embedding": ("padding_idx", "empty_batch"),
    "MultiheadAttention": ("fully_masked", "mask_b_t_s", "unbatched"),
    "Dropout": ("drawn_0.0", "drawn_1.0"),
    "MSELoss": ("none", "mean", "sum"),
    "CrossEntropyLoss": ("weights_mean_0.2", "ignored_weights_mean_0.0", "ignored_weights_none_0.2"),
}


@pytest.mark.parametrize("row", EDGES)
def test_edges_are_among_the_samples(row: str) -> None:
    """They belong to every column that is cheap, or to what fails on both sides."""
    awkward = {sample.name for sample in samples(row) if sample.awkward}
    assert awkward >= set(EDGES[row])
