"""The rule of the cross-entropy, which vmap would take apart in Python."""

from typing import Any

import torch.nn.functional as F
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

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
    if scores.dim() == 2:
        scores, classes = scores.unsqueeze(1), classes.unsqueeze(1)
    if scores.dim() < 3 or classes.shape != (*scores.shape[:2], *scores.shape[3:]):
        return NotImplemented
    count = tape.examples
    with temporarily_pop_interpreter_stack():
        each = F.cross_entropy(scores.flatten(0, 1), classes.flatten(0, 1), ignore_index=ignore_index, reduction="none")
        losses = each.view(count, -1).sum(1)
        if reduction == "mean":
            losses = losses / (classes != ignore_index).view(count, -1).sum(1)
    return tape.batched(losses)


PHYSICAL_RULES[F.cross_entropy] = _cross_entropy
