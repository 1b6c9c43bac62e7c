"""A first look at a model: a table of its leaves."""

from typing import Any

from torch import Tensor

from purenn.tree._move import count
from purenn.tree._ties import aliases_of
from purenn.tree._walk import flatten, is_trainable, short


def summary(p: Any) -> str:
    """A table with a row for every leaf: path, class of its container, shape, number of elements, role.

    Below it the totals: parameters, those that are trained, buffers. Ties are listed once, with their aliases.
    """
    values, structure = flatten(p)
    rows = [("path", "in", "tensor", "elements", "role")]
    for leaf, value in zip(structure.leaves, values, strict=True):
        role = leaf.kind if leaf.kind == "buffer" else "trained" if is_trainable(leaf, value) else "frozen"
        if leaf.kind == "parameter" and not leaf.frozen and role == "frozen":
            role = "not trained"
        elements = f"{value.numel():,}" if isinstance(value, Tensor) else "-"
        rows.append((leaf.path or "(the leaf itself)", leaf.owner or "-", short(value), elements, role))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.rjust(w) if number == 3 else cell.ljust(w)
            for number, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    lines += [f"{alias} = {path} (tied)" for alias, path in aliases_of(p).items()]
    trained, buffers = count(p, trainable=True), count(p, kind="buffer")
    lines.append(f"{count(p):,} parameters, {trained:,} trained, {buffers:,} elements in buffers")
    return "\n".join(lines)
