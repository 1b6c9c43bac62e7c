"""What is drawn of a tree: its floating-point leaves by path, and the numbers that are read from them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from purenn import tree
from purenn.errors import ArgumentError, SelectionError, ShapeError, StructureError

#: The name of a leaf that is the whole tree.
ITSELF = "(the leaf itself)"


class Values(NamedTuple):
    """The numbers of a leaf.

    Attributes:
        finite: those that are neither NaN nor infinite, ``[count]``, in single or double precision on the CPU.
        nan: how many are NaN.
        infinite: how many are infinite.
    """

    finite: Tensor
    nan: int
    infinite: int

    @property
    def note(self) -> str:
        """What cannot be drawn, in words; empty if everything can."""
        counts = ((self.nan, "NaN"), (self.infinite, "infinite"))
        return ", ".join(f"{count:,} {name}" for count, name in counts if count)


def values_of(leaf: Tensor) -> Values:
    """The numbers of a leaf; of a complex one real and imaginary parts."""
    leaf = leaf.detach()
    leaf = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
    flat = leaf.to("cpu", torch.promote_types(leaf.dtype, torch.float32)).flatten()
    finite = flat[flat.isfinite()]
    missing = len(flat) - len(finite)
    nan = int(flat.isnan().sum()) if missing else 0
    return Values(finite, nan, missing - nan)


def chosen(where: str, p: Any, paths: str | Sequence[str] | None) -> dict[str, Tensor]:
    """The floating-point and complex leaves of a tree by path, of some paths if asked.

    Raises:
        SelectionError: `paths` hit nothing, or there is no such leaf.
        ArgumentError: a leaf has no data.
    """
    p = _tree(p)
    part = p if paths is None else tree.partition(p, paths=paths)[0]
    found = {path or ITSELF: leaf for path, leaf in tree.named_leaves(part) if _is_drawn(leaf)}
    if not found:
        raise SelectionError(f"{where}: there is no floating-point or complex tensor to draw in this tree.")
    _require_data(where, found)
    return found


def _require_data(where: str, leaves: dict[str, Tensor]) -> None:
    for path, leaf in leaves.items():
        if leaf.is_meta:
            raise ArgumentError(f"{where}: '{path}' is on meta and has no data: make the tree on another device.")


def _tree(p: Any) -> Any:
    return p.state_dict() if isinstance(p, nn.Module) else p


def _is_drawn(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def pairs(where: str, first: Any, second: Any, paths: str | Sequence[str] | None) -> dict[str, tuple[Tensor, Tensor]]:
    """The leaves that two trees of the same structure both have, by path; holes of either are left out.

    Raises:
        StructureError: the trees differ in structure.
        ShapeError: two leaves differ in shape.
        SelectionError: there is no pair.
        ArgumentError: a leaf has no data.
    """
    first, second = _tree(first), _tree(second)
    try:
        tree.map(lambda one, other: None, first, second)
    except StructureError as error:
        raise StructureError(f"{where}: {str(error).removeprefix('map: ')}") from None
    others = {path or ITSELF: leaf for path, leaf in tree.named_leaves(second)}
    found = {path: (leaf, others[path]) for path, leaf in chosen(where, first, paths).items() if path in others}
    if not found:
        raise SelectionError(
            f"{where}: the trees have no leaf in common, each has a HOLE where the other has a tensor."
        )
    _require_data(where, {path: other for path, (_, other) in found.items()})
    for path, (one, other) in found.items():
        if one.shape != other.shape:
            raise ShapeError(
                f"{where}: '{path}' has the shape {list(one.shape)} in one tree and {list(other.shape)} in the other."
            )
    return found


def norm(leaf: Tensor) -> float:
    """The Euclidean norm of a leaf, accumulated in double precision; NaN if an element is."""
    wide = torch.complex128 if leaf.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(leaf.detach(), dtype=wide))


def bounded(leaf: Tensor) -> tuple[Tensor, int]:
    """A leaf with zeros in the place of elements that are not finite, and the number of those."""
    finite = leaf.detach().isfinite()
    return torch.where(finite, leaf.detach(), 0), int((~finite).sum())
