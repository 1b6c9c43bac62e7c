"""What functions with derivative rules of their own do where they are traced."""

from collections.abc import Sequence

import torch
from torch import Tensor

from purenn._modes import is_traced
from purenn.transforms._program import TRANSFORMABLE, writes_programs
from purenn.transforms._rule_op import applied, marked


def ruled(name: str, results: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Results of a function with a derivative rule, on the way into a graph.

    Args:
        name: the function, for the error.
        results: what it returned.
        given: the tensors that it depends on.

    Returns:
        The results. If a graph is traced that somebody may differentiate, its derivative is a `GradientError`.
    """
    if not is_traced() or not (writes_programs() or any(tensor.requires_grad for tensor in given)):
        return list(results)
    return marked(name, results, given)


TRANSFORMABLE[torch.ops.purenn.ruled.default] = applied
