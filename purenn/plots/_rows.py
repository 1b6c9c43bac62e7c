"""A figure with one row for each leaf: path names at the left, as long as they are, and notes at the right."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from purenn._extras import imported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, GREY = "#1f6fb2", "#c2352b", "#6b6b6b"


def new_figure(where: str, width: float, height: float, title: str) -> "Figure":
    """An empty figure, `width` by `height` inches, which no global state knows of."""
    made = imported("matplotlib.figure", where, "figures are drawn by", "matplotlib", "plots")
    figure = made.Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


def rows_figure(where: str, paths: Sequence[str], title: str, *, panels: int = 1) -> tuple["Figure", list[Any]]:
    """A figure that is as high as there are paths, with panels beside each other; the first path is on top."""
    longest = max(map(len, paths))
    height = 1.1 + 0.2 * len(paths) + (0.3 if title else 0)
    figure = new_figure(where, 2.5 + 4 * panels + 0.07 * longest, height, title)
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    axes[0].set_yticks(range(len(paths)), paths, fontsize=8)
    axes[0].set_ylim(len(paths) - 0.5, -0.5)
    for panel in axes:
        panel.tick_params(axis="y", length=0)
        panel.tick_params(axis="x", labelsize=8, labeltop=len(paths) > 40)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def write_notes(axes: Any, notes: Sequence[tuple[str, bool]]) -> None:
    """Write a word or two at the right end of some rows, in red where something is wrong."""
    for row, (note, wrong) in enumerate(notes):
        axes.annotate(
            note,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=RED if wrong else GREY,
        )
