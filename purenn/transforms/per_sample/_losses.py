"""The rule of the cross-entropy."""

from typing import Any

import torch.nn.functional as F

from purenn.transforms._cross_entropy import cross_entropies
from purenn.transforms.per_sample._below import BelowVmap
from purenn.transforms.per_sample._tape import PHYSICAL_RULES, Tape


def _cross_entropy(tape: Tape, input: Any, target: Any, **options: Any) -> Any:
    scores, classes = tape.physical(input), tape.physical(target)
    if scores is None or classes is None:
        return NotImplemented
    with BelowVmap():
        losses = cross_entropies(scores, classes, options)
    return NotImplemented if losses is None else tape.batched(losses)


PHYSICAL_RULES[F.cross_entropy] = _cross_entropy
