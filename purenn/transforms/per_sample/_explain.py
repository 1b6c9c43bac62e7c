"""What a record does for every leaf, in words and numbers."""

from typing import NamedTuple

import attrs

from purenn.transforms.per_sample._engine import Recorded
from purenn.transforms.per_sample._part import Budget


class LeafExplanation(NamedTuple):
    """One leaf.

    Attributes:
        path: of the leaf.
        shape: of the leaf.
        form: "closed form" if norms are found without the gradients of the examples; "materialised" if these are
            computed; "copies" if an operation without a rule used the leaf, so that every example had one of its own;
            "unused".
        bytes: what the gradients of all examples take.
        kept: whether they are kept for a second use, within the budget.
    """

    path: str
    shape: tuple[int, ...]
    form: str
    bytes: int
    kept: bool


@attrs.frozen
class Explanation:
    """All leaves, in the order of the parameters; ``str`` makes a table of them."""

    leaves: tuple[LeafExplanation, ...]

    def __str__(self) -> str:
        rows = [("leaf", "shape", "norms by", "MiB of all", "kept")]
        for leaf in self.leaves:
            size = f"{leaf.bytes / 2**20:.2f}"
            rows.append((leaf.path, str(list(leaf.shape)), leaf.form, size, "yes" if leaf.kept else "no"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


def explained(recorded: Recorded, budget: Budget) -> Explanation:
    """The explanation of a record, or of its first slice."""
    leaves = []
    for path, value, part in recorded.named:
        if part is None:
            leaves.append(LeafExplanation(path, tuple(value.shape), "unused", 0, False))
            continue
        form, is_kept = part.plan(budget)
        leaves.append(LeafExplanation(path, tuple(value.shape), form, part.bytes, is_kept))
    return Explanation(tuple(leaves))
