"""Trees in TensorBoard's files, read back by TensorBoard."""

import math
import sys
from pathlib import Path

import pytest
import torch

import purenn as pn
from purenn import plots
from purenn.errors import MissingExtraError, SelectionError, StructureError
from purenn.layers import BatchNorm1d, Linear, Sequential

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
PATHS = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


@pytest.fixture
def p(device: torch.device) -> Sequential:
    """A layer and a normalisation, with buffers of both kinds."""
    return Sequential.of(Linear.init(pn.random.key(0, device), 3, 2), BatchNorm1d.init(2, device=device))


def read(folder: Path) -> "accumulator.EventAccumulator":
    """Everything that was written."""
    events = accumulator.EventAccumulator(str(folder), size_guidance={"histograms": 0, "scalars": 0})
    return events.Reload()


def test_names_are_paths(p: Sequential, tmp_path: Path) -> None:
    """Norms, ratios and histograms have the leaves' paths as names, the steps that were given, and their values."""
    trained = pn.tree.partition(p)[0]
    with plots.TensorBoard(tmp_path) as board:
        for step in (3, 5):
            board.norms("parameters", p, step, paths=["layers.*.weight", "layers.*.bias"])
            board.ratios("update ratio", p, pn.tree.map(lambda w, step=step: w / step, trained), step)
            board.histograms("distribution", trained, step)
        board.writer.add_scalar("loss", 0.5, 5)
    events = read(tmp_path)
    groups = [f"{group}/{path}" for group in ("parameters", "update ratio") for path in PATHS]
    assert set(events.Tags()["scalars"]) == {*groups, "parameters", "loss"}
    assert set(events.Tags()["histograms"]) == {f"distribution/{path}" for path in PATHS}
    leaves = dict(pn.tree.named_leaves(p))
    for path in PATHS:
        points = events.Scalars(f"parameters/{path}")
        assert [point.step for point in points] == [3, 5]
        assert points[0].value == pytest.approx(leaves[path].norm().item())
        ratios = [point.value for point in events.Scalars(f"update ratio/{path}")]
        assert ratios == pytest.approx([0, 0] if path == "layers.1.bias" else [1 / 3, 1 / 5])
        histogram = events.Histograms(f"distribution/{path}")[1].histogram_value
        assert histogram.num == leaves[path].numel()
        assert histogram.min == pytest.approx(leaves[path].min().item())
    together = sum(leaves[path].square().sum() for path in PATHS) ** 0.5
    assert events.Scalars("parameters")[0].value == pytest.approx(together.item())


def test_what_is_not_finite(tmp_path: Path, device: torch.device) -> None:
    """NaN is left out of histograms and counted; a norm of NaN is NaN, a ratio to zero is infinite."""
    zeros, bad = torch.zeros(3, device=device), torch.tensor([1.0, math.nan, math.inf], device=device)
    with plots.TensorBoard(str(tmp_path)) as board:
        board.histograms("weights", {"bad": bad, "good": zeros, "worst": bad[1:]}, 0)
        board.norms("norm", {"bad": bad}, 0)
        board.ratios("ratio", {"w": zeros}, {"w": zeros + 1}, 0)
    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["weights/bad", "weights/good"]
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert math.isnan(found.pop("norm/bad"))
    assert math.isnan(found.pop("norm"))
    assert found == {"weights (not finite)/bad": 2, "weights (not finite)/worst": 2, "ratio/w": math.inf}


def test_writer_of_ones_own(p: Sequential, tmp_path: Path) -> None:
    """A writer that is open already stays open, and what is written is there."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    with plots.TensorBoard(writer) as board:
        assert board.writer is writer
        board.norms("parameters", p, 0)
    assert "parameters/layers.0.weight" in read(tmp_path).Tags()["scalars"]
    writer.add_scalar("later", 1.0, 1)
    writer.close()
    assert "later" in read(tmp_path).Tags()["scalars"]


def test_errors(p: Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty trees, trees that differ, and a missing library are errors."""
    with plots.TensorBoard(tmp_path) as board:
        with pytest.raises(SelectionError) as empty:
            board.norms("parameters", (), 0)
        with pytest.raises(StructureError, match=r"^ratios: the trees differ at 'layers'"):
            board.ratios("ratio", p, Sequential.of(), 0)
    assert str(empty.value) == "norms: there is no floating-point or complex tensor to draw in this tree."
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError) as missing:
        plots.TensorBoard(tmp_path)
    assert str(missing.value) == (
        "TensorBoard: files are written by the library tensorboard, which is not installed: pip install "
        "'purenn[tensorboard]'."
    )
