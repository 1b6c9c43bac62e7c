"""Samples that do not pass a column, each with its reason.

A failure without a reason is an error, and so is a reason whose samples pass. `REASONS` are limits of torch: at most 2%
of all cells may have one, and none in the columns of `NEVER`. `KNOWN_BUGS` are faults of this library that are to be
mended; it is empty when there are none.
"""

from typing import NamedTuple


class Reason(NamedTuple):
    """Why some samples fail.

    Attributes:
        text: the reason.
        samples: names of the samples that fail, or None for all. The others of the cell must pass.
    """

    text: str
    samples: tuple[str, ...] | None


_EMPTY = Reason("torch's second derivative, to which ours is compared, fails for no indices at all", ("empty_batch",))
REASONS: dict[tuple[str, str], Reason] = {
    ("Embedding", "second order"): _EMPTY,
    ("CrossEntropyLoss", "from_module"): Reason(
        "torch's function selects by values where classes are ignored, weighted and smoothed, which vmap cannot",
        ("ignored_weights_mean_0.2",),
    ),
}
KNOWN_BUGS: dict[tuple[str, str], Reason] = {}

LARGEST_SHARE = 0.02
NEVER = ("forward", "gradients", "purity", "vmap over models")


def reason(row: str, column: str) -> Reason | None:
    """Why some samples of a cell do not pass; None if all must."""
    return REASONS.get((row, column)) or KNOWN_BUGS.get((row, column))
