"""The rule of the cross-entropy, which vmap would take apart in Python."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from purenn.transforms.per_sample._below import BelowVmap
from purenn.transforms.per_sample._tape import PHYSICAL_RULES, Tape


def _cross_entropy(
    tape: Tape,
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    scores, classes = tape.physical(input), tape.physical(target)
    if scores is None or classes is None or reduction not in ("mean", "sum"):
        return NotImplemented
    if weight is not None or size_average is not None or reduce is not None or label_smoothing:
        return NotImplemented
    # Of one example without a batch, or of a batch of its own for each example.
    lead = 1 if scores.dim() == 2 else 2
    if scores.dim() < 2 or classes.shape != (*scores.shape[:lead], *scores.shape[lead + 1 :]):
        return NotImplemented
    with BelowVmap():
        if lead == 2:
            scores, classes = scores.flatten(0, 1), classes.flatten(0, 1)
        each = F.cross_entropy(scores, classes, ignore_index=ignore_index, reduction="none")
        losses = _by_example(each, tape.examples)
        if reduction == "mean":
            losses = losses / _by_example(classes != ignore_index, tape.examples).to(losses.dtype)
    return tape.batched(losses)


def _by_example(x: Tensor, examples: int) -> Tensor:
    return x if x.dim() == 1 and x.shape[0] == examples else x.view(examples, -1).sum(1)


PHYSICAL_RULES[F.cross_entropy] = _cross_entropy
