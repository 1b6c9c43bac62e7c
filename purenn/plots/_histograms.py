"""How the elements of every leaf are distributed: a histogram each, or all leaves in one picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from purenn.errors import ArgumentError
from purenn.plots._leaves import Values, chosen, values_of
from purenn.plots._rows import BLUE, GREY, RED, new_figure, rows_figure, write_notes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS, _MOST = 4, 64
_DECADES, _BINS_OF_A_DECADE, _SEEN = 15, 5, 0.01


def histograms(p: Any, *, paths: str | Sequence[str] | None = None, bins: int = 60, title: str = "") -> "Figure":
    """A histogram of the elements of every leaf, of parameters as of gradients, each on a scale of its own.

    The counts have a logarithmic scale, so that single outliers are seen. Above each histogram stand the path, the mean
    and the standard deviation; elements that are NaN or infinite are counted there in red.

    Args:
        p: any tree; its floating-point and complex leaves are drawn.
        paths: path patterns of what to draw, as in `pn.tree.partition`. Default: everything.
        bins: of each histogram. Default: 60.
        title: of the figure. Default: none.

    Returns:
        A figure of matplotlib; ``figure.savefig("histograms.png")`` writes it.

    Raises:
        ArgumentError: more than 64 leaves, no bins, or a leaf without data.
        SelectionError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> import purenn as pn
        >>> from purenn.layers import Linear
        >>> figure = pn.plots.histograms(Linear.init(pn.random.key(0), 64, 32))
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['weight', 'bias']
    """
    if bins < 1:
        raise ArgumentError(f"histograms: bins must be at least 1, got {bins}.")
    leaves = chosen("histograms", p, paths)
    if len(leaves) > _MOST:
        raise ArgumentError(
            f"histograms: {len(leaves)} leaves are more than the {_MOST} that one figure can hold: choose some with "
            f"paths=, or see all of them in pn.plots.magnitudes."
        )
    columns = min(_COLUMNS, len(leaves))
    rows = math.ceil(len(leaves) / columns)
    width = max(3.6, 0.085 * max(map(len, leaves)))
    figure = new_figure("histograms", width * columns, 1.9 * rows + (0.4 if title else 0), title)
    for number, (path, leaf) in enumerate(leaves.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(path, loc="left", fontsize=9, pad=16)
        _histogram(axes, values_of(leaf), bins)
    figure.supylabel("elements", fontsize=9)
    return figure


def _histogram(axes: Any, values: Values, bins: int) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    finite = values.finite.double()
    below_title = {"transform": axes.transAxes, "fontsize": 8, "va": "bottom"}
    axes.text(1, 1.03, values.note, color=RED, ha="right", **below_title)
    if not len(finite):
        axes.set(xticks=[], yticks=[])
        return
    axes.text(0, 1.03, f"{float(finite.mean()):.2g} ± {float(finite.std(correction=0)):.2g}", color=GREY, **below_title)
    counts, edges = torch.histogram(finite, bins, range=_range(finite))
    axes.stairs(counts.tolist(), edges.tolist(), fill=True, color=BLUE)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_minor_formatter("")
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", scilimits=(-2, 3))
    axes.tick_params(labelsize=7)
    axes.xaxis.get_offset_text().set_fontsize(7)


def _range(finite: torch.Tensor) -> tuple[float, float]:
    low, high = float(finite.min()), float(finite.max())
    if low < high:
        return low, high
    around = abs(low) / 2 or 0.5  # all elements are equal
    return low - around, high + around


def magnitudes(p: Any, *, paths: str | Sequence[str] | None = None, title: str = "") -> "Figure":
    """The sizes of the elements of all leaves in one picture: a row for each path, a column for each fifth of a decade.

    Gradients that vanish or explode towards one end of a model are seen at a glance, however many leaves there are.
    The darkest column of a row has most of the leaf's elements; columns at the left in which no row has a hundredth of
    that are cut off. Beside the rows stands how many elements are zero, NaN or infinite, which have no place on a
    logarithmic scale.

    Args:
        p: any tree; its floating-point and complex leaves are drawn.
        paths: path patterns of what to draw, as in `pn.tree.partition`. Default: everything.
        title: of the figure. Default: none.

    Returns:
        A figure of matplotlib.

    Raises:
        ArgumentError: a leaf has no data.
        SelectionError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    leaves = {path: values_of(leaf) for path, leaf in chosen("magnitudes", p, paths).items()}
    sizes = [values.finite.abs() for values in leaves.values()]
    largest = max((float(size.max()) for size in sizes if len(size)), default=0.0) or 1.0
    top = math.floor(math.log10(largest)) + 1
    edges = torch.logspace(top - _DECADES, top, _DECADES * _BINS_OF_A_DECADE + 1, dtype=torch.float64)
    counts = torch.stack([torch.histogram(size, edges.to(size.dtype)).hist.double() for size in sizes])
    shares = counts / counts.amax(1, keepdim=True).clamp(min=1)
    seen = (shares > _SEEN).any(0).nonzero()
    cut = int(seen[0]) // _BINS_OF_A_DECADE if len(seen) else _DECADES - 1
    bottom = top - _DECADES + cut
    figure, (axes,) = rows_figure("magnitudes", list(leaves), title)
    axes.imshow(
        shares[:, cut * _BINS_OF_A_DECADE :].tolist(),
        aspect="auto",
        extent=(bottom, top, len(leaves) - 0.5, -0.5),
        cmap="Blues",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_xticks(range(bottom, top + 1), [f"$10^{{{n}}}$" for n in range(bottom, top + 1)])
    axes.set_xlabel("absolute value")
    write_notes(axes, [_note(values) for values in leaves.values()])
    return figure


def _note(values: Values) -> tuple[str, bool]:
    zeros = int((values.finite == 0).sum())
    return ", ".join(filter(None, [f"{zeros:,} zero" if zeros else "", values.note])), bool(values.note)
