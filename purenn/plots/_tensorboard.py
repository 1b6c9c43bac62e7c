"""Trees in TensorBoard: norms, histograms and ratios by path, step by step."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from purenn._extras import imported
from purenn.plots._leaves import chosen, norm, pairs, values_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes what is to be known of trees for TensorBoard, under the names that the leaves have: their paths.

    Every method writes one point for each leaf, with the tag ``name/path``: for `name` "gradients", the leaf
    ``layers.0.weight`` is ``gradients/layers.0.weight``, and TensorBoard shows all leaves of "gradients" together.

    Args:
        target: a folder to write to, or a `SummaryWriter` of torch that is open already, which stays open.

    Attributes:
        writer: torch's `SummaryWriter`, for everything else: ``board.writer.add_scalar("loss", loss, step)``.

    Raises:
        MissingExtraError: tensorboard is not installed.

    Example:
        >>> import tempfile, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = Linear.init(pn.random.key(0), 3, 2)
        >>> with tempfile.TemporaryDirectory() as folder, pn.plots.TensorBoard(folder) as board:
        ...     board.norms("parameters", p, 0)
        ...     board.histograms("distribution", p, 0)
    """

    def __init__(self, target: "str | os.PathLike[str] | SummaryWriter") -> None:
        self._owned = isinstance(target, (str, os.PathLike))
        self.writer: SummaryWriter = _opened(target) if isinstance(target, (str, os.PathLike)) else target

    def norms(self, name: str, p: Any, step: int, *, paths: str | Sequence[str] | None = None) -> None:
        """Write the Euclidean norm of every floating-point or complex leaf, and that of all together as ``name`` alone.

        Raises:
            SelectionError: there is no such leaf, or `paths` hit none.
            ArgumentError: a leaf has no data.
        """
        found = {path: norm(leaf) for path, leaf in chosen("norms", p, paths).items()}
        self._scalars(name, found, step)
        self.writer.add_scalar(name, math.hypot(*found.values()), step)

    def ratios(self, name: str, p: Any, updates: Any, step: int, *, paths: str | Sequence[str] | None = None) -> None:
        """Write ``|update| / |weight|`` of every leaf: infinite where the weight is zero, 0 where both are.

        Args:
            name: of the group.
            p: the parameters before the step.
            updates: what is added to them, as an optimiser's `update` returns it; it may have holes.
            step: number of the step.
            paths: path patterns, as in `pn.tree.partition`. Default: everything.

        Raises:
            StructureError: the trees differ in structure.
            ShapeError: two leaves differ in shape.
            SelectionError: the trees have no leaf in common, or `paths` hit none.
            ArgumentError: a leaf has no data.
        """
        found = pairs("ratios", p, updates, paths)
        self._scalars(name, {path: _ratio(update, weight) for path, (weight, update) in found.items()}, step)

    def histograms(self, name: str, p: Any, step: int, *, paths: str | Sequence[str] | None = None) -> None:
        """Write a histogram of the finite elements of every leaf, and how many are not finite where there are any.

        The counts have the tags ``name (not finite)/path``.

        Raises:
            SelectionError: there is no floating-point or complex leaf, or `paths` hit none.
            ArgumentError: a leaf has no data.
        """
        values = {path: values_of(leaf) for path, leaf in chosen("histograms", p, paths).items()}
        for path, of_leaf in values.items():
            if len(of_leaf.finite):
                self.writer.add_histogram(f"{name}/{path}", of_leaf.finite, step)
        broken = {path: float(v.nan + v.infinite) for path, v in values.items() if v.note}
        self._scalars(f"{name} (not finite)", broken, step)

    def _scalars(self, name: str, values: dict[str, float], step: int) -> None:
        for path, value in values.items():
            self.writer.add_scalar(f"{name}/{path}", value, step)

    def close(self) -> None:
        """Write what is left, and close the writer if it was opened here."""
        if self._owned:
            self.writer.close()
        else:
            self.writer.flush()

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(folder: "str | os.PathLike[str]") -> "SummaryWriter":
    library = imported("torch.utils.tensorboard", "TensorBoard", "files are written by", "tensorboard", "tensorboard")
    return library.SummaryWriter(os.fspath(folder))


def _ratio(update: Tensor, weight: Tensor) -> float:
    part, whole = norm(update), norm(weight)
    return part / whole if whole else part and math.inf
