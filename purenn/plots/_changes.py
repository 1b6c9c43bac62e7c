"""How far parameters move: updates against weights, and one tree against another."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from purenn.plots._leaves import bounded, norm, pairs
from purenn.plots._rows import BLUE, GREY, rows_figure, write_notes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A rule of thumb: steps near a thousandth of the weights are neither too long nor too short.
USUAL = 1e-3


class Change(NamedTuple):
    """What has changed in a leaf.

    Attributes:
        size: the norm of the change, of its finite elements.
        whole: the norm of the leaf, of its finite elements.
        broken: how many elements of the change are not finite.
        share: of elements that have changed, from 0 to 1.
    """

    size: float
    whole: float
    broken: int
    share: float


def update_ratios(p: Any, updates: Any, *, paths: str | Sequence[str] | None = None, title: str = "") -> "Figure":
    """The norm of every leaf's update as a part of the norm of the leaf itself, ``|update| / |weight|``.

    A ratio near 1e-3, where the figure has a line, is usual; one far above says that the learning rate is too high for
    that leaf, one far below that it hardly learns.

    Args:
        p: the parameters before the step.
        updates: what is added to them, as an optimiser's `update` returns it; it may have holes.
        paths: path patterns of what to draw, as in `pn.tree.partition`. Default: everything.
        title: of the figure. Default: none.

    Returns:
        A figure of matplotlib. Where there is no ratio to draw, the row says why.

    Raises:
        StructureError: the trees differ in structure.
        ShapeError: two leaves differ in shape.
        SelectionError: there is nothing to draw.
        ArgumentError: a leaf has no data.
        MissingExtraError: matplotlib is not installed.
    """
    found = pairs("update_ratios", p, updates, paths)
    changes = [_change(weight, update) for weight, update in found.values()]
    figure, (axes,) = rows_figure("update_ratios", list(found), title)
    axes.axvline(USUAL, color=GREY, linestyle="--", linewidth=1)
    axes.annotate("usual", (USUAL, 0), xytext=(3, 7), textcoords="offset points", fontsize=8, color=GREY)
    _draw_ratios(axes, changes, "no update", "the weight is zero", seen=[USUAL])
    axes.set_xlabel("norm of the update / norm of the weight")
    return figure


def difference(first: Any, second: Any, *, paths: str | Sequence[str] | None = None, title: str = "") -> "Figure":
    """Where two trees differ, and how much: two models, two checkpoints, or gradients computed in two ways.

    At the left the norm of each leaf's difference as a part of the norm of the first tree's leaf; at the right the
    share of elements that differ. Equal leaves are said to be; an element that is NaN in both is equal.

    Args:
        first: a tree.
        second: a tree of the same structure; either may have holes.
        paths: path patterns of what to draw, as in `pn.tree.partition`. Default: everything.
        title: of the figure. Default: none.

    Returns:
        A figure of matplotlib.

    Raises:
        StructureError: the trees differ in structure.
        ShapeError: two leaves differ in shape.
        SelectionError: there is nothing to draw.
        ArgumentError: a leaf has no data.
        MissingExtraError: matplotlib is not installed.
    """
    found = pairs("difference", first, second, paths)
    changes = [_change(one, _subtracted(one, other)) for one, other in found.values()]
    figure, (sizes, shares) = rows_figure("difference", list(found), title, panels=2)
    _draw_ratios(sizes, changes, "equal", "the first is zero")
    sizes.set_xlabel("norm of the difference / norm of the first")
    shares.barh(range(len(changes)), [100 * change.share for change in changes], height=0.6, color=BLUE)
    shares.set(xlim=(0, 100), xlabel="elements that differ (%)")
    return figure


def _subtracted(first: Tensor, second: Tensor) -> Tensor:
    # In the wider dtype. Elements that are NaN in both trees, or the same infinity, are equal.
    dtype = torch.promote_types(first.dtype, second.dtype)
    one, other = first.detach().to(dtype), second.detach().to(first.device, dtype)
    return torch.where((one == other) | (one.isnan() & other.isnan()), 0, other - one)


def _change(leaf: Tensor, change: Tensor) -> Change:
    finite, broken = bounded(change)
    share = float((change.detach() != 0).double().mean()) if change.numel() else 0.0
    return Change(norm(finite), norm(bounded(leaf)[0]), broken, share)


def _draw_ratios(
    axes: Any, changes: Sequence[Change], none: str, undefined: str, *, seen: Sequence[float] = ()
) -> None:
    drawn = {row: ratio for row, c in enumerate(changes) if c.whole and (ratio := c.size / c.whole)}
    decades = [math.log10(value) for value in (*seen, *drawn.values())] or [0.0]
    left, right = math.floor(min(decades) - 0.1), math.ceil(max(decades) + 0.1)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(10**left, 10**right)
    axes.grid(axis="x", alpha=0.3)
    axes.hlines(list(drawn), 10**left, list(drawn.values()), color=BLUE, linewidth=1)
    axes.plot(list(drawn.values()), list(drawn), "o", color=BLUE, markersize=5)
    write_notes(axes, [_note(change, none, undefined) for change in changes])


def _note(change: Change, none: str, undefined: str) -> tuple[str, bool]:
    if change.broken:
        return f"{change.broken:,} not finite", True
    if change.size:
        return ("", False) if change.whole else (undefined, False)
    return none, False
