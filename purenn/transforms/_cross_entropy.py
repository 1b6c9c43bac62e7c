"""The cross-entropy of many examples at once, which vmap would take apart in Python."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def cross_entropies(scores: Tensor, classes: Tensor, options: dict[str, Any]) -> Tensor | None:
    """The cross-entropy of each example, reduced over its own rows and positions.

    Args:
        scores: ``[examples, classes, *]``, or ``[examples, rows, classes, *]`` if each has a batch of its own.
        classes: integers, the same without the axis of the classes.
        options: of `torch.nn.functional.cross_entropy`, by name.

    Returns:
        ``[examples]``; None if the options or shapes ask for something else.
    """
    reduction, ignore_index = options.get("reduction", "mean"), options.get("ignore_index", -100)
    if reduction not in ("mean", "sum") or options.get("label_smoothing"):
        return None
    if any(options.get(name) is not None for name in ("weight", "size_average", "reduce")):
        return None
    lead = 1 if scores.dim() == 2 else 2
    if scores.dim() < 2 or classes.shape != (*scores.shape[:lead], *scores.shape[lead + 1 :]):
        return None
    examples = scores.shape[0]
    if lead == 2:
        scores, classes = scores.flatten(0, 1), classes.flatten(0, 1)
    each = F.cross_entropy(scores, classes, ignore_index=ignore_index, reduction="none")
    losses = _by_example(each, examples)
    if reduction == "mean":
        losses = losses / _by_example(classes != ignore_index, examples).to(losses.dtype)
    return losses


def _by_example(x: Tensor, examples: int) -> Tensor:
    return x if x.dim() == 1 and x.shape[0] == examples else x.view(examples, -1).sum(1)
