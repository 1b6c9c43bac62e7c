"""Figures of trees: what is drawn, what is said in words, and what is refused."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import bridge
import purenn as pn
from purenn import plots
from purenn.errors import ArgumentError, MissingExtraError, PurennError, SelectionError, ShapeError, StructureError
from purenn.layers import BatchNorm1d, Linear, Sequential

ONE_TREE = (plots.histograms, plots.magnitudes)
TWO_TREES = (plots.update_ratios, plots.difference)


@pytest.fixture
def p(device: torch.device) -> Sequential:
    """Two linear layers with a normalisation between them."""
    k1, k2 = pn.random.split(pn.random.key(0, device))
    return Sequential.of(Linear.init(k1, 3, 4), BatchNorm1d.init(4, device=device), Linear.init(k2, 4, 2, bias=False))


def row_names(figure: Figure) -> list[str]:
    """The names of the rows from top to bottom."""
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def notes(figure: Figure) -> list[str]:
    """What is written at the end of every row."""
    return [text.get_text() for text in figure.axes[0].texts if text.get_text() != "usual"]


def dots(figure: Figure) -> dict[int, float]:
    """The drawn ratios by row."""
    line = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    return dict(zip(line.get_ydata(), line.get_xdata(), strict=True))


def test_histograms(p: Sequential) -> None:
    """Every floating-point leaf has a panel with its path, all its elements, its mean and its deviation."""
    figure = plots.histograms(p, bins=7, title="parameters")
    floating = {path: leaf for path, leaf in pn.tree.named_leaves(p) if leaf.is_floating_point()}
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(floating)
    for axes, leaf in zip(figure.axes, floating.values(), strict=True):
        counts, edges, _ = axes.patches[0].get_data()
        assert len(counts) == 7
        assert counts.sum() == leaf.numel()
        if leaf.std(correction=0) > 0:
            assert edges[0] == pytest.approx(leaf.min().item())
            assert edges[-1] == pytest.approx(leaf.max().item())
        assert axes.texts[-1].get_text() == f"{leaf.double().mean():.2g} ± {leaf.double().std(correction=0):.2g}"
    assert figure.get_suptitle() == "parameters"


def test_histograms_of_what_is_not_finite(device: torch.device) -> None:
    """NaN and infinite elements are counted; complex leaves are their parts; a leaf without elements is empty."""
    tree = {
        "bad": torch.tensor([1.0, math.nan, math.inf, -math.inf, math.nan], device=device),
        "complex": torch.ones(5, dtype=torch.complex64, device=device),
        "empty": torch.ones(0, device=device),
        "half": torch.ones(5, dtype=torch.bfloat16, device=device),
        "worst": torch.full((3,), math.nan, device=device),
    }
    axes = dict(zip(tree, plots.histograms(tree).axes, strict=True))
    assert [one.texts[0].get_text() for one in axes.values()] == ["2 NaN, 2 infinite", "", "", "", "3 NaN"]
    counts = {name: one.patches[0].get_data().values.sum() for name, one in axes.items() if one.patches}
    assert counts == {"bad": 1, "complex": 10, "half": 5}


def test_magnitudes(device: torch.device) -> None:
    """A row for each path and five columns for a decade; what is zero or not finite is said in words."""
    tree = {
        "large": torch.full((8,), 30.0, device=device),
        "mixed": torch.tensor([0.02] * 3 + [-2.0] * 6 + [0.0, math.nan], device=device),
        "nothing": torch.zeros(4, device=device),
    }
    figure = plots.magnitudes(tree)
    assert row_names(figure) == ["large", "mixed", "nothing"]
    assert notes(figure) == ["", "1 zero, 1 NaN", "4 zero"]
    picture = figure.axes[0].images[0]
    assert picture.get_extent() == [-2, 2, 2.5, -0.5]
    shares = torch.tensor(picture.get_array().tolist())
    assert shares.shape == (3, 20)
    assert shares[0].nonzero().tolist() == [[17]]
    assert {column: shares[1, column].item() for column in (1, 11)} == {1: 0.5, 11: 1}
    assert shares[1:].sum() == 1.5


def test_magnitudes_of_nothing(device: torch.device) -> None:
    """A tree of zeros, and one of elements that are not finite, have a figure as well."""
    figure = plots.magnitudes({"a": torch.zeros(2, device=device), "b": torch.full((2,), math.inf, device=device)})
    assert notes(figure) == ["2 zero", "2 infinite"]


def test_update_ratios(p: Sequential, device: torch.device) -> None:
    """The ratio of norms for every leaf that has an update; where there is none the row says why."""
    updates = pn.tree.map(lambda w: 0.01 * w, pn.tree.partition(p)[0])
    figure = plots.update_ratios(p, updates, title="one step")
    trained = [path for path, _ in pn.tree.named_leaves(pn.tree.partition(p)[0])]
    assert row_names(figure) == trained
    assert notes(figure) == ["no update" if path == "layers.1.bias" else "" for path in trained]
    assert list(dots(figure).values()) == pytest.approx([0.01] * (len(trained) - 1), rel=1e-6)
    zeros, ones = torch.zeros(2, device=device), torch.ones(2, device=device)
    figure = plots.update_ratios({"a": zeros, "b": ones}, {"a": ones, "b": torch.tensor([3.0, math.nan])})
    assert notes(figure) == ["the weight is zero", "1 not finite"]
    assert dots(figure) == {1: pytest.approx(3 / 2**0.5)}


def test_difference(p: Sequential) -> None:
    """Which paths differ, by how much, and in how many of their elements; dtypes may differ."""
    other = pn.tree.select(p).paths("layers.0.weight").apply(lambda w: torch.cat([1.5 * w[:1], w[1:]]))
    figure = plots.difference(p, other)
    paths = row_names(figure)
    assert notes(figure) == ["" if path == "layers.0.weight" else "equal" for path in paths]
    one = p.layers[0].weight
    assert dots(figure) == {0: pytest.approx((0.5 * one[0].norm() / one.norm()).item())}
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx([25.0] + [0.0] * (len(paths) - 1))
    assert set(notes(plots.difference(p, pn.tree.to(p, torch.float64)))) == {"equal"}


def test_difference_of_what_is_not_finite(device: torch.device) -> None:
    """NaN against NaN is equal, NaN against a number is counted, the others are still measured."""
    bad = torch.tensor([math.nan, math.inf, 4.0], device=device)
    worse = torch.tensor([math.nan, math.nan, 5.0], device=device)
    figure = plots.difference({"same": bad, "worse": bad}, {"same": bad.clone(), "worse": worse})
    assert notes(figure) == ["equal", "1 not finite"]
    assert dots(figure) == {1: pytest.approx(1 / 4)}
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx([0, 100 * 2 / 3])


@pytest.mark.parametrize("draw", [*ONE_TREE, *TWO_TREES])
def test_paths_and_bare_leaves(draw: Callable[..., Figure], p: Sequential) -> None:
    """Some paths can be chosen; a bare tensor is a tree; ties are drawn once; the figure can be written."""
    trees = (p,) if draw in ONE_TREE else (p, p)
    figure = draw(*trees, paths=["layers.2", "layers.0.bias"])
    named = [axes.get_title(loc="left") for axes in figure.axes] if draw is plots.histograms else row_names(figure)
    assert named == ["layers.0.bias", "layers.2.weight"]
    bare = draw(*[p.layers[0].weight] * len(trees))
    assert "(the leaf itself)" in [bare.axes[0].get_title(loc="left"), *row_names(bare)]
    figure.draw_without_rendering()


@pytest.mark.parametrize("draw", [plots.magnitudes, *TWO_TREES])
def test_modules(draw: Callable[..., Figure], p: Sequential) -> None:
    """A module, of torch or made of a container, has the rows of its state_dict, in its order."""
    for module in (bridge.to_module(p, copy=True), torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))):
        figure = draw(*[module] * (1 if draw in ONE_TREE else 2))
        names = [name for name, value in module.state_dict().items() if value.is_floating_point()]
        assert row_names(figure) == names


def test_long_names_and_many_leaves(device: torch.device) -> None:
    """A figure is wide enough for long paths and high enough for many leaves."""
    many = {f"{'encoder.' * 12}{n:03}.weight": torch.ones(2, device=device) for n in range(100)}
    few = dict(list(many.items())[:4])
    figure = plots.magnitudes(many)
    assert row_names(figure) == list(many)
    assert figure.get_figheight() > 3 * plots.magnitudes(few).get_figheight()
    figure.draw_without_rendering()
    inside = figure.axes[0].yaxis.get_ticklabels()[0].get_window_extent()
    assert inside.x0 >= 0
    panels = plots.histograms(few)
    panels.draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in panels.axes]
    titles = [axes._left_title.get_window_extent() for axes in panels.axes]
    assert all(title.x1 <= box.x0 for title, box in zip(titles, boxes[1:], strict=False))


def refused(error: type[PurennError], text: str, call: Callable[[], Any]) -> None:
    """The call is refused with this error and this whole text."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_errors_of_trees() -> None:
    """Nothing to draw, no data, too much for one figure, and no bins are errors."""
    w = torch.ones(2)
    for draw in ONE_TREE:
        name = draw.__name__
        for tree in ((), {"n": torch.ones(2, dtype=torch.int64)}):
            refused(
                SelectionError,
                f"{name}: there is no floating-point or complex tensor to draw in this tree.",
                lambda draw=draw, tree=tree: draw(tree),
            )
        refused(
            ArgumentError,
            f"{name}: 'w' is on meta and has no data: make the tree on another device.",
            lambda draw=draw: draw({"w": torch.ones(2, device="meta")}),
        )
        with pytest.raises(SelectionError, match="is empty in this dict; its nodes are: w"):
            draw({"w": w}, paths="v")
    refused(
        ArgumentError,
        "histograms: 65 leaves are more than the 64 that one figure can hold: choose some with paths=, or see all of "
        "them in pn.plots.magnitudes.",
        lambda: plots.histograms([w] * 65),
    )
    refused(ArgumentError, "histograms: bins must be at least 1, got 0.", lambda: plots.histograms(w, bins=0))


@pytest.mark.parametrize("draw", TWO_TREES)
def test_errors_of_pairs(draw: Callable[..., Figure]) -> None:
    """Trees that differ in structure or shape, or have nothing in common, are refused."""
    name, w = draw.__name__, torch.ones(2)
    first, rest = pn.tree.partition(Linear(w[None], w[:1]), paths="weight")
    refused(
        StructureError,
        f"{name}: the trees differ at the top: the children ['w'] against ['v']. Both must have the same classes, "
        f"absent children and static fields.",
        lambda: draw({"w": w}, {"v": w}),
    )
    refused(
        ShapeError,
        f"{name}: 'w' has the shape [2] in one tree and [1, 2] in the other.",
        lambda: draw({"w": w}, {"w": w[None]}),
    )
    refused(
        SelectionError,
        f"{name}: the trees have no leaf in common, each has a HOLE where the other has a tensor.",
        lambda: draw(first, rest),
    )
    refused(
        ArgumentError,
        f"{name}: 'w' is on meta and has no data: make the tree on another device.",
        lambda: draw({"w": w}, {"w": w.to("meta")}),
    )


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where matplotlib is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(
        MissingExtraError,
        "magnitudes: figures are drawn by the library matplotlib, which is not installed: pip install 'purenn[plots]'.",
        lambda: plots.magnitudes(torch.ones(2)),
    )


def test_imported_when_used() -> None:
    """Importing the library imports none of the optional ones, and a figure leaves pyplot alone."""
    code = (
        "import sys, torch, purenn as pn\n"
        "optional = ('matplotlib', 'tensorboard', 'treescope', 'rich')\n"
        "assert not [name for name in optional if name in sys.modules], sys.modules.keys()\n"
        "pn.plots.magnitudes(torch.ones(3))\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
