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
    if not are_understood(scores, classes, options):
        return None
    reduction, ignore_index, examples = options.get("reduction", "mean"), options.get("ignore_index", -100), len(scores)
    if scores.dim() > 2:
        scores, classes = scores.flatten(0, 1), classes.flatten(0, 1)
    each = F.cross_entropy(scores, classes, ignore_index=ignore_index, reduction="none")
    losses = _by_example(each, examples)
    if reduction == "mean":
        losses = losses / _by_example(classes != ignore_index, examples).to(losses.dtype)
    return losses


def are_understood(scores: Tensor, classes: Tensor, options: dict[str, Any]) -> bool:
    """Whether these options are known, and the shapes are as `cross_entropies` says."""
    if options.get("reduction", "mean") not in ("mean", "sum") or options.get("label_smoothing"):
        return False
    if any(options.get(name) is not None for name in ("weight", "size_average", "reduce")):
        return False
    lead = 1 if scores.dim() == 2 else 2
    return scores.dim() > 1 and classes.shape == (*scores.shape[:lead], *scores.shape[lead + 1 :])


def _by_example(x: Tensor, examples: int) -> Tensor:
    return x if x.dim() == 1 and x.shape[0] == examples else x.view(examples, -1).sum(1)
